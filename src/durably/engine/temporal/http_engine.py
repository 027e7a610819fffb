"""The engine of ``durably start --temporal``, which calls its apps over HTTP."""

import time
from typing import Self

from temporalio.client import Client

from durably.engine.core.calls import Answer, CallData, Unreached
from durably.engine.model.calls import HttpCaller
from durably.engine.model.functions import SyncedFunction
from durably.engine.model.overview import SyncResult
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.runs.call_messages import CallInput
from durably.protocol.engine_errors import EngineError, FunctionNotFoundError
from durably.protocol.errors import ErrorData
from durably.protocol.sync import SyncRequest

from .ids import HTTP_QUEUE
from .workers import WorkerGroup
from .workflow_engine import WorkflowEngine

_FUNCTION_SECONDS = 1.0
"""Seconds for which the URL of a function is cached. A change of an app's URL takes effect after this time."""


class HttpWorkflowEngine(WorkflowEngine):
    """An engine that executes workflows and calls apps at their synced URLs.

    Several processes may serve the same apps.
    """

    def __init__(self, client: Client, settings: EngineSettings) -> None:
        super().__init__(client, settings, in_process=False)
        self._caller = HttpCaller(settings)
        self._workers = WorkerGroup(lambda: self.make_workers([HTTP_QUEUE], self._call_app), settings.close_grace)
        self._functions: dict[str, tuple[float, SyncedFunction]] = {}

    @classmethod
    async def open(cls, client: Client, settings: EngineSettings) -> Self:
        """Prepare the namespace, and run workers.

        Raises ``RPCError``, and ``SearchAttributeError`` if the namespace cannot be prepared.
        """
        engine = cls(client, settings)
        try:
            await engine.prepare()
        except BaseException:
            await engine.close()
            raise
        engine._workers.start()
        return engine

    async def close(self) -> None:
        self._closed.set()  # Streams of changes must end before calls do.
        await self._workers.stop()
        await self._caller.close()
        await super().close()

    async def sync_app(self, request: SyncRequest, *, in_process: bool = False) -> SyncResult:
        result = await super().sync_app(request, in_process=in_process)
        self._functions.clear()
        return result

    async def _call_app(self, call: CallInput, data: CallData) -> Answer:
        try:
            function = await self._find_function(call.function_id)
        except EngineError as error:
            return Unreached(ErrorData(name=type(error).__name__, message=error.message))
        return await self._caller.call(function, data)

    async def _find_function(self, function_id: str) -> SyncedFunction:
        known = self._functions.get(function_id)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        record = await self._router.records.find_function(function_id)
        if record is None:
            raise FunctionNotFoundError(f"no app has synced a function with the id {function_id!r}")
        function = SyncedFunction.from_config(record.config, record.app_id, record.app_version)
        self._functions[function_id] = (time.monotonic() + _FUNCTION_SECONDS, function)
        return function
