"""The functions with leased slots whose calls a process makes."""

import asyncio
from collections.abc import Sequence

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.client import Client

from durably.engine.model.runs import RunStatus
from durably.engine.temporal.apps.record_workflows import APP
from durably.engine.temporal.ids import app_workflow_id, slots_queue
from durably.engine.temporal.messages import AppRecord
from durably.engine.temporal.records import Records
from durably.engine.temporal.reports.function_lists import FunctionLists
from durably.engine.temporal.reports.run_lists import RunFilter, RunLists
from durably.engine.temporal.workflow_requests import is_polled
from durably.protocol.sync import SyncRequest
from durably.protocol.text import get_logger

_logger = get_logger("durably.engine")


class LeasedFunctions:
    """Functions of this process (in process), or of all apps (over HTTP).

    If a function was removed from its app, its calls wait in the task queue until a process serves it again.
    """

    def __init__(
        self, client: Client, records: Records, functions: FunctionLists, runs: RunLists, *, in_process: bool
    ) -> None:
        self._client = client
        self._records = records
        self._functions = functions
        self._runs = runs
        self._in_process = in_process
        self._served: dict[str, frozenset[str]] = {}
        self._checked: set[str] = set()
        self.by_app: dict[str, Sequence[str]] = {}
        self.changed = asyncio.Event()

    def queue_of(self, function_id: str) -> str:
        return slots_queue(function_id, in_process=self._in_process)

    async def note_synced(self, request: SyncRequest, *, in_process: bool) -> None:
        """Add the functions of an app that has synced. Earlier functions stay.

        Raises ``RPCError``.
        """
        if in_process is self._in_process:
            self._served[request.app_id] = frozenset(function.id for function in request.functions)
            self._add(request.app_id, await self._read(request.app_id))

    async def refresh(self) -> None:
        """Find functions that other processes have synced, and those that none serves.

        Raises ``RPCError``.
        """
        if not self._in_process:
            for app_id, record in await self._functions.app_records():
                self._add(app_id, record)
            return
        for app_id, served in list(self._served.items()):
            app = await self._read(app_id)
            self._add(app_id, app)
            for function_id in set(app.leased) - served - self._checked:
                await self._check_unserved(function_id)

    async def _read(self, app_id: str) -> AppRecord:
        """The record of an app that has synced."""
        record: AppRecord | None = await self._records.read(app_workflow_id(app_id), APP, AppRecord)
        return AppRecord(url="", functions={}) if record is None else record

    def _add(self, app_id: str, record: AppRecord) -> None:
        found = sorted(self._served[app_id].intersection(record.leased) if self._in_process else record.leased_http)
        if self.by_app.get(app_id) != found:
            self.by_app[app_id] = found
            self.changed.set()

    async def _check_unserved(self, function_id: str) -> None:
        """Warn once if runs wait for a function that no process serves."""
        if await is_polled(self._client, self.queue_of(function_id), TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY):
            return  # Another process serves it.
        self._checked.add(function_id)
        waiting = await self._runs.count(RunFilter(function_id=function_id, status=RunStatus.RUNNING))
        if waiting:
            _logger.warning(
                "no process of its app serves the function %r, so its running runs (%d) do not continue: deploy code "
                "with the function, or cancel them",
                function_id,
                waiting,
            )
