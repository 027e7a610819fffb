"""The body of a call (spec §4.4.1), put together from what is stored, without decoding any of it.

Pure. Keys are in alphabetical order, so a body of canonical parts is canonical (RFC 8785).
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from durably.engine.head import Call, Deferred
from durably.protocol.limits import MAX_CALL_BODY_BYTES

_SDK_DECIDES = -1
"""``version``: the app is to use the version of the protocol that it likes best."""


class CallData(msgspec.Struct, frozen=True, gc=False):
    """The content of a call. ``events`` are JSON, several if the run has a batch; ``memos`` are hashed step ids and
    memos in the order of the memos. ``step_input``, if any, is the hashed id of a step that has yet to run, and the
    input that a person gave it: ``{"input": […]}``. ``also`` are calls that share the request of ``call``: an app may
    execute their steps too, and an SDK without this feature ignores them. ``priority`` is that of ``CallAt``, and is
    not sent. ``defers`` are the functions that the run has deferred."""

    run_id: str
    function_id: str
    call: Call
    max_attempts: int
    disable_immediate: bool
    events: Sequence[bytes]
    memos: Sequence[tuple[str, bytes]]
    step_input: tuple[str, bytes] | None = None
    also: Sequence[Call] = ()
    priority: int = 0
    defers: Sequence[Deferred] = ()

    @property
    def job_id(self) -> str:
        return job_id_of(self.run_id, self.call.step_id)

    @property
    def request_id(self) -> str:
        """Tells this call from all others. Checkpoints may be known by it where they have no generation."""
        return request_id_of(self.run_id, self.call.generation)


def job_id_of(run_id: str, step_id: str) -> str:
    """The same for all attempts to discover, or to run one step."""
    return f"{run_id}.{step_id}"


def request_id_of(run_id: str, generation: int) -> str:
    return f"{run_id}.{generation}"


def generation_of(request_id: str) -> int | None:
    """The generation in an id that ``request_id_of`` made."""
    generation = request_id.rpartition(".")[2]
    return int(generation) if generation.isdecimal() and generation.isascii() else None


def build_body(data: CallData) -> bytes:
    """Where it would be too large, the app is told to fetch memos and events from the engine's API instead."""
    events = len(data.events[0]) + sum(map(len, data.events))
    size = events + sum(len(step_id) + len(memo) + 4 for step_id, memo in data.memos)
    body = _assemble(data, use_api=False) if size <= MAX_CALL_BODY_BYTES else None
    return body if body is not None and len(body) <= MAX_CALL_BODY_BYTES else _assemble(data, use_api=True)


def join_memos(memos: Sequence[tuple[str, bytes]]) -> bytes:
    """A JSON object of memos by hashed step id."""
    return b"{" + b",".join(msgspec.json.encode(step_id) + b":" + memo for step_id, memo in sorted(memos)) + b"}"


def _steps(data: CallData) -> Sequence[tuple[str, bytes]]:
    return data.memos if data.step_input is None else [*data.memos, data.step_input]


def _defers(data: CallData) -> bytes:
    """The run's deferred functions, so that the app does not defer them again."""
    if not data.defers:
        return b""
    told = {deferred.step_id: {"abortable": deferred.is_abortable} for deferred in data.defers}
    return b',"defers":' + msgspec.json.encode(dict(sorted(told.items())))


def _assemble(data: CallData, *, use_api: bool) -> bytes:
    context: dict[str, Any] = {"also": [call.step_id for call in data.also]} if data.also else {}
    context |= {
        "attempt": data.call.attempt,
        "disable_immediate_execution": data.disable_immediate,
        "env": "",
        "fn_id": data.function_id,
        "generation_id": data.call.generation,
        "job_id": data.job_id,
        "max_attempts": data.max_attempts,
        "qi_id": data.request_id,
        "request_id": data.request_id,
        "run_id": data.run_id,
        "stack": {"current": len(data.memos), "stack": [step_id for step_id, _ in data.memos]},
        "step_id": data.call.step_id,
        "use_api": use_api,
    }
    return b"".join(
        (
            b'{"ctx":',
            msgspec.json.encode(context),
            _defers(data),
            b',"event":',
            data.events[0],
            b',"events":[',
            b"" if use_api else b",".join(data.events),
            b'],"steps":',
            b"{}" if use_api else join_memos(_steps(data)),
            b',"use_api":',
            b"true" if use_api else b"false",
            b',"version":',
            str(_SDK_DECIDES).encode(),
            b"}",
        )
    )
