"""The engine's operations by name, for use over a link and within the leader.

Arguments and results are sent as JSON. Users' JSON is a string within it, so that it stays byte for byte the same.
"""

import datetime as dt
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

import durably.engine.core.errors
from durably.engine.core.errors import EngineError, EventInvalidError
from durably.engine.engine import EmbeddedEngine
from durably.engine.scheduling.bulk_operations import Selection
from durably.engine.scheduling.reruns import FromStep
from durably.engine.views import (
    AttemptView,
    BulkOperationView,
    EventView,
    FunctionView,
    InvokeReceipt,
    RunStatus,
    RunView,
    StepView,
)
from durably.protocol.call import CheckpointRequest
from durably.protocol.events import Event, EventReceipt
from durably.protocol.limits import MAX_EVENTS_PER_POST

_events_decoder = msgspec.json.Decoder(list[Event])


class Operation(msgspec.Struct, frozen=True):
    """``is_repeatable``: executing it twice has the effect of executing it once.

    If the leader ends before the answer of another operation arrives, it is unclear whether it was executed.
    """

    name: str
    execute: Callable[..., Awaitable[Any]]
    arguments: Any
    result: Any = None
    is_repeatable: bool = True
    raw_field: str | None = None
    """The field with users' JSON, of the struct ``result`` or of each of its items."""

    def encode_arguments(self, arguments: tuple[Any, ...]) -> bytes:
        return msgspec.json.encode(arguments)

    async def answer(self, engine: EmbeddedEngine, encoded: bytes) -> bytes:
        """Execute it for another process. Raises ``EngineError``."""
        arguments = msgspec.json.decode(encoded, type=self.arguments)
        result = await self.execute(engine, *arguments)
        return msgspec.json.encode(result if self.raw_field is None else _to_wire(result, self.raw_field))

    def decode_result(self, encoded: bytes) -> Any:
        if self.raw_field is None:
            return msgspec.json.decode(encoded, type=self.result)
        return _from_wire(msgspec.json.decode(encoded), self.result, self.raw_field)


def _to_wire(result: Any, raw_field: str) -> Any:
    if isinstance(result, list):
        return [_to_wire(each, raw_field) for each in result]
    if result is None:
        return None
    raw = getattr(result, raw_field)
    return {**msgspec.structs.asdict(result), raw_field: None if raw is None else bytes(raw).decode()}


def _from_wire(decoded: Any, view: type[Any], raw_field: str) -> Any:
    if isinstance(decoded, list):
        return [_from_wire(each, view, raw_field) for each in decoded]
    if decoded is None:
        return None
    raw = decoded[raw_field]
    result = msgspec.convert({**decoded, raw_field: None}, view)
    return result if raw is None else msgspec.structs.replace(result, **{raw_field: msgspec.Raw(raw.encode())})


async def _send_events(engine: EmbeddedEngine, body: msgspec.Raw, seed: str, sender: str | None) -> EventReceipt:
    try:
        events = _events_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EventInvalidError(f"the events are malformed: {error}") from None
    if len(events) > MAX_EVENTS_PER_POST:
        raise EventInvalidError(f"{len(events)} events are too many at a time; send at most {MAX_EVENTS_PER_POST}")
    return await engine.accept_events(events, seed=seed, sender=sender)


async def _list_events(
    engine: EmbeddedEngine,
    name: str | None,
    received_after: dt.datetime | None,
    received_before: dt.datetime | None,
    limit: int,
    cursor: str | None,
) -> list[EventView]:
    return await engine.list_events(
        name=name, received_after=received_after, received_before=received_before, limit=limit, cursor=cursor
    )


async def _list_runs(
    engine: EmbeddedEngine,
    status: str | None,
    function_id: str | None,
    limit: int,
    cursor: str | None,
    started_after: dt.datetime | None,
) -> list[RunView]:
    status = RunStatus(status) if status else None
    return await engine.list_runs(
        status=status, function_id=function_id, limit=limit, cursor=cursor, started_after=started_after
    )


async def _rerun(engine: EmbeddedEngine, run_id: str, from_step: FromStep | None) -> str:
    return await engine.rerun(run_id, from_step=from_step)


async def _invoke(engine: EmbeddedEngine, function_id: str, data: dict[str, Any]) -> InvokeReceipt:
    return await engine.invoke(function_id, data=data)


_ListEvents = tuple[str | None, dt.datetime | None, dt.datetime | None, int, str | None]
_ListRuns = tuple[str | None, str | None, int, str | None, dt.datetime | None]
_ReplayRuns = tuple[Selection, list[RunStatus]]

_ALL = (
    Operation("send_events", _send_events, tuple[msgspec.Raw, str, str | None], EventReceipt),
    Operation("checkpoint", EmbeddedEngine.checkpoint, tuple[str, CheckpointRequest], None),
    Operation("list_functions", EmbeddedEngine.list_all_functions, tuple[()], list[FunctionView]),
    Operation("pause_function", EmbeddedEngine.pause_function, tuple[str]),
    Operation("resume_function", EmbeddedEngine.resume_function, tuple[str]),
    Operation("get_event", EmbeddedEngine.get_event, tuple[str], EventView | None),
    Operation("list_events", _list_events, _ListEvents, list[EventView]),
    Operation("get_run", EmbeddedEngine.get_run, tuple[str], RunView, raw_field="output"),
    Operation("wait_for_run", EmbeddedEngine.wait_for_run, tuple[str], RunView, raw_field="output"),
    Operation("list_runs", _list_runs, _ListRuns, RunView, raw_field="output"),
    Operation("event_runs", EmbeddedEngine.event_runs, tuple[str], RunView, raw_field="output"),
    Operation("run_steps", EmbeddedEngine.run_steps, tuple[str], StepView, raw_field="memo"),
    Operation("run_attempts", EmbeddedEngine.run_attempts, tuple[str], list[AttemptView]),
    Operation("cancel_run", EmbeddedEngine.cancel_run, tuple[str], bool),
    Operation("cancel_runs", EmbeddedEngine.cancel_runs, tuple[Selection], BulkOperationView, is_repeatable=False),
    Operation("list_cancellations", EmbeddedEngine.list_cancellations, tuple[()], list[BulkOperationView]),
    Operation("delete_cancellation", EmbeddedEngine.delete_cancellation, tuple[str], is_repeatable=False),
    Operation("rerun", _rerun, tuple[str, FromStep | None], str, is_repeatable=False),
    Operation("replay_runs", EmbeddedEngine.replay_runs, _ReplayRuns, BulkOperationView, is_repeatable=False),
    Operation("list_replays", EmbeddedEngine.list_replays, tuple[()], list[BulkOperationView]),
    Operation("invoke", _invoke, tuple[str, dict[str, Any]], InvokeReceipt, is_repeatable=False),
    Operation("signal", EmbeddedEngine.signal, tuple[str, Any], str | None, is_repeatable=False),
)
OPERATIONS = {operation.name: operation for operation in _ALL}


def to_error(name: str, message: str) -> EngineError:
    """The engine's error that the leader reported."""
    kind = getattr(durably.engine.core.errors, name, EngineError)
    is_known = isinstance(kind, type) and issubclass(kind, EngineError)
    return kind(message) if is_known else EngineError(f"{name}: {message}")
