"""Workers for the calls of functions whose slots this process leases.

Each function has one.
"""

import asyncio
import contextlib
import datetime as dt
from collections.abc import Awaitable, Callable
from typing import Self

from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Worker

from durably.engine.core.flow.config import read_flow
from durably.engine.temporal.flow.limit_queue import leased_limit
from durably.engine.temporal.ids import slots_workflow_id
from durably.engine.temporal.records import Records
from durably.engine.temporal.workflow_requests import update_with_start
from durably.temporal.compat import release_task_queue

from .call_slots import CallSlots
from .leased_functions import LeasedFunctions
from .slot_leases import ProcessSlots, SlotLeases
from .slot_pools import LeaseAnswer, LeaseRequest
from .slots_workflow import SlotsWorkflow

_REFRESH_SECONDS, _RETRY_SECONDS = 60.0, 2.0
"""Seconds after which a process sees that another process has synced a function with such a limit. Also the pause after
a request that the server did not answer."""

_TASK_TIMEOUT = dt.timedelta(seconds=5)
"""Time until another process gets a workflow task whose process has ended. Temporal's default of 10 s is half of the
time for which a lease lasts without an answer."""

MakeWorker = Callable[[str, CallSlots, SlotLeases], Worker]
"""A worker for a task queue."""


class LeasedWorkers:
    """Has the methods of a worker, and of its slots.

    Functions are added while it runs.
    """

    def __init__(
        self, functions: LeasedFunctions, records: Records, client: Client, make: MakeWorker, max_calls: int
    ) -> None:
        self._slots: list[CallSlots] = []
        self._is_closed = False
        self._functions = functions
        self._records = records
        self._client = client
        self._make = make
        self._max_calls = max_calls
        self._shared = ProcessSlots(max_calls)
        self._leases: dict[str, SlotLeases] = {}
        self._workers: dict[str, Worker] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._has_begun = False
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Run until ``shutdown``. Raises the error of a worker that fails."""
        self._has_begun = True
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            pause = await self._refresh()
            while not stopping.done():
                self._add_workers()
                self._functions.changed.clear()
                changed = asyncio.create_task(self._functions.changed.wait())
                try:
                    done, _ = await asyncio.wait(
                        {stopping, changed, *self._running},
                        timeout=pause,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                finally:
                    changed.cancel()
                for task in done & self._running:
                    task.result()
                if not done:
                    pause = await self._refresh()
        finally:
            stopping.cancel()
            await self._stop()

    async def _refresh(self) -> float:
        """Look for functions. Returns the seconds until the next look."""
        with contextlib.suppress(RPCError):  # The server is unreachable.
            await self._functions.refresh()
            return _REFRESH_SECONDS
        return _RETRY_SECONDS

    async def shutdown(self) -> None:
        self._stopping.set()
        if self._has_begun:
            await self._stopped.wait()

    def close(self) -> None:
        """Make no more calls. Calls that wait for a slot are returned to the server."""
        self._is_closed = True
        for slots in self._slots:
            slots.close()

    async def wait_until_unused(self) -> None:
        """Wait for the end of calls, and return the slots while workflows are executed."""
        await asyncio.gather(*(slots.wait_until_unused() for slots in self._slots))
        await self._return_slots()

    async def wait_until_polls_are_quiet(self) -> None:
        await asyncio.gather(*(slots.wait_until_polls_are_quiet() for slots in self._slots))

    async def _return_slots(self) -> None:
        await asyncio.gather(*(leases.close() for leases in self._leases.values()))

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._stopping.set()
        await self._task

    def _add_workers(self) -> None:
        for app_id, function_ids in self._functions.by_app.items():
            for function_id in function_ids:
                if function_id not in self._workers:
                    self._add(app_id, function_id)

    def _add(self, app_id: str, function_id: str) -> None:
        leases = self._leases.get(app_id)
        if leases is None:
            leases = self._leases[app_id] = SlotLeases(
                self._sender(app_id), self._read_limit, self._max_calls, self._shared
            )
        slots = leases.add(function_id)
        self._slots.append(slots)
        if self._is_closed:
            slots.close()
        worker = self._workers[function_id] = self._make(self._functions.queue_of(function_id), slots, leases)
        self._running.add(asyncio.create_task(worker.run()))

    async def _stop(self) -> None:
        await asyncio.gather(*(worker.shutdown() for worker in self._workers.values()), return_exceptions=True)
        await asyncio.gather(*self._running, return_exceptions=True)
        for worker in self._workers.values():
            release_task_queue(worker)
        await self._return_slots()
        self._stopped.set()

    def _sender(self, app_id: str) -> Callable[[LeaseRequest], Awaitable[LeaseAnswer]]:
        async def send(request: LeaseRequest) -> LeaseAnswer:
            answer: LeaseAnswer = await update_with_start(
                self._client,
                "lease",
                request,
                workflow=SlotsWorkflow.run,
                id=slots_workflow_id(app_id),
                summary=f"slots of {app_id}",
                task_timeout=_TASK_TIMEOUT,
                result_type=LeaseAnswer,
            )
            return answer

        return send

    async def _read_limit(self, function_id: str) -> int | None:
        """The limit of calls that wait in the function's task queue.

        If limits with keys have replaced it, the smallest of them.
        """
        record = await self._records.find_function(function_id)
        if record is None:
            return None
        flow = read_flow(record.config)
        return leased_limit(flow) or min((each.limit for each in flow.concurrency if each.limit), default=None)
