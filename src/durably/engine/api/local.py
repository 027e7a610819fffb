"""``LocalEngine``, the base of the engines that run in a process: what they share beyond the operations."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from durably.engine.model.channels import Channels
from durably.engine.model.dispatcher import Dispatcher
from durably.engine.model.events import check_event, decode_events
from durably.engine.model.overview import LogState, SyncResult
from durably.engine.model.run_report import RunRows, report_attempts, report_run, report_steps
from durably.engine.model.runs import Attempt, InvokeReceipt, RunReport, RunUpdate, Step
from durably.engine.model.settings import EngineSettings
from durably.protocol.engine_errors import EngineError, EventInvalidError
from durably.protocol.events import Event, EventReceipt, InternalEvent
from durably.protocol.headers import read_trace
from durably.protocol.sync import SyncRequest

from .interface import Engine


class LocalEngine(Engine):
    """An engine that runs in this process.

    It has the methods that its HTTP API needs in addition to the operations.
    """

    _settings: EngineSettings

    @property
    def channels(self) -> Channels | None:
        """The hub of messages, if the engine has one."""
        return None

    @property
    def connected(self) -> Dispatcher | None:
        """The calls to apps that dial this engine, if it accepts such apps."""
        return None

    async def _read_run(self, run_id: str, *, has_context: bool) -> RunRows | None:
        """The rows of a run. If it ``has_context``, with the events, parent, children and logs."""
        raise NotImplementedError

    async def run_steps(self, run_id: str) -> list[Step]:
        rows = await self._read_run(run_id, has_context=False)
        return [] if rows is None else report_steps(rows)

    async def run_attempts(self, run_id: str) -> list[Attempt]:
        rows = await self._read_run(run_id, has_context=False)
        return [] if rows is None else report_attempts(rows)

    async def inspect_run(self, run_id: str) -> RunReport | None:
        rows = await self._read_run(run_id, has_context=True)
        return None if rows is None else report_run(rows)

    @property
    def stop_error(self) -> EngineError | None:
        """The error that stopped the engine, unless ``close`` stopped it."""
        return None

    async def close(self) -> None:
        """Refuse further input, and wait for calls under way.

        The wait is limited by the settings' ``close_grace``.
        """
        raise NotImplementedError

    def explain(self, error: Exception) -> Exception:
        """Convert a store error to an ``EngineError``.

        Other errors are returned unchanged.
        """
        return error

    async def verify(self) -> None:
        """Check that the engine can accept events and call apps.

        Raises an error if it cannot.
        """

    async def read_log(self) -> LogState | None:
        """The state of the commit log, ``None`` if there is none or its store cannot be reached."""
        return None

    async def receive_events(
        self,
        body: bytes,
        *,
        seed: str | None = None,
        sender: str | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
        baggage: str | None = None,
    ) -> EventReceipt:
        events = await decode_events(body, self._settings.max_event_bytes)
        if traceparent is not None:
            traceparent = read_trace({"traceparent": traceparent, "tracestate": tracestate, "baggage": baggage})
        with self._receiving([event.name for event in events], sender, traceparent) as trace:
            return await self.accept_events(events, seed=seed, sender=sender, traceparent=trace)

    async def invoke(
        self,
        function_id: str,
        data: dict[str, Any] | None = None,
        *,
        user: Any = None,
        v: str | None = None,
        id: str | None = None,
        seed: str | None = None,
        sender: str | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
        baggage: str | None = None,
    ) -> InvokeReceipt:
        if data is not None and not isinstance(data, dict):
            raise EventInvalidError(f"function {function_id!r} is invoked with data that is not an object")
        event = Event(name=InternalEvent.FUNCTION_INVOKED, data=data or {}, id=id or "", user=user, v=v)
        try:
            check_event(event, self._settings.max_event_bytes, is_internal=True)
        except EventInvalidError as error:
            raise type(error)(f"function {function_id!r} cannot be started: {error.message}") from None
        if traceparent is not None:
            traceparent = read_trace({"traceparent": traceparent, "tracestate": tracestate, "baggage": baggage})
        with self._receiving((event.name,), sender, traceparent) as trace:
            return await self._start_invocation(function_id, event, seed=seed, sender=sender, traceparent=trace)

    async def _start_invocation(
        self, function_id: str, event: Event, *, seed: str | None, sender: str | None, traceparent: str | None
    ) -> InvokeReceipt:
        """See ``Engine.invoke``. ``event`` has its ``id``, if any."""
        raise NotImplementedError

    def _receiving(
        self, names: Sequence[str], sender: str | None, traceparent: str | None
    ) -> AbstractContextManager[str | None]:
        """The span of a receipt of events, and the trace context that their runs continue."""
        tracing = self._settings.tracing
        # The events of an untraced app's run continue the trace of the run.
        if tracing is None or (sender is not None and traceparent is None):
            return nullcontext(traceparent)
        return tracing.receiving(names, traceparent)

    async def accept_events(
        self,
        events: Sequence[Event],
        *,
        seed: str | None = None,
        sender: str | None = None,
        traceparent: str | None = None,
    ) -> EventReceipt:
        """Store decoded events as ``receive_events`` does.

        Raises ``EventInvalidError``.
        """
        raise NotImplementedError

    async def sync_app(self, request: SyncRequest, *, in_process: bool = False) -> SyncResult:
        """Replace the functions of an app.

        ``in_process``: the app is not called over HTTP, and its URLs are only names. Raises ``ConfigInvalidError``,
        which names the function and the option.
        """
        raise NotImplementedError

    def watch(self) -> AbstractContextManager[AsyncIterator[RunUpdate]]:
        """Future changes of runs, for display.

        A slow reader loses the oldest updates.
        """
        raise NotImplementedError

    def watch_process(self) -> AbstractContextManager[AsyncIterator[RunUpdate]]:
        """``watch`` for the runs that this process executes."""
        return self.watch()
