"""The body of a call, built from stored bytes, and its canonical form.

The source is the spec, §4.4.1.
"""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import re2
import rfc8785

from durably.protocol.call import CheckpointRequest, function_uuid
from durably.protocol.engine_errors import CheckpointInvalidError
from durably.protocol.limits import MAX_CALL_BODY_BYTES
from durably.protocol.signatures import canonicalize

from .run_state import Call, Deferred

_SDK_DECIDES = -1
"""The ``version`` that leaves the choice of the protocol's version to the app."""


class CallData(msgspec.Struct, frozen=True, gc=False):
    """The content of a call.

    - ``events``: JSON, several if the run has a batch.
    - ``memos``: Hashed step ids and memos, in the order of the memos.
    - ``step_input``: If set, the hashed id of a step that has not run yet, and the input that a user gave it:
      ``{"input": […]}``.
    - ``also``: Calls that share the request of ``call``. An app may execute their steps too. An SDK without this
      feature ignores them.
    - ``priority``: Orders calls, and is not sent.
    - ``defers``: The functions that the run has deferred.
    - ``traceparent``: The trace context that the call continues, if any.
    """

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
    traceparent: str | None = None

    @property
    def request_id(self) -> str:
        """Identifies this call, also for checkpoints without a generation."""
        return f"{self.run_id}.{self.call.generation}"


def job_id_of(run_id: str, step_id: str) -> str:
    """The same id for all attempts to discover, or to run one step."""
    return f"{run_id}.{step_id}"


def generation_of(request_id: str) -> int | None:
    """The generation in ``CallData.request_id``."""
    generation = request_id.rpartition(".")[2]
    return int(generation) if generation.isdecimal() and generation.isascii() else None


def generation_of_checkpoint(request: CheckpointRequest) -> int:
    """The generation of a checkpoint's call. Raises ``CheckpointInvalidError``."""
    generation = request.generation_id
    if generation is None:
        generation = generation_of(request.request_id or request.qi_id or "")
    if generation is None:
        raise CheckpointInvalidError(
            "the checkpoint does not name its call: generation_id, request_id or qi_id must be as in the call's context"
        )
    return generation


def build_body(data: CallData, max_bytes: int = MAX_CALL_BODY_BYTES) -> bytes:
    """The body of a call, at most ``max_bytes`` long if possible.

    A body that would be too large asks the app to fetch memos and events from the engine's API instead.
    """
    events = len(data.events[0]) + sum(map(len, data.events))
    size = events + sum([len(step_id) + len(memo) + 4 for step_id, memo in data.memos])
    body = _assemble(data, use_api=False) if size <= max_bytes else None
    return body if body is not None and len(body) <= max_bytes else _assemble(data, use_api=True)


def join_memos(memos: Sequence[tuple[str, bytes]]) -> bytes:
    """A JSON object of memos by hashed step id."""
    return b"{" + b",".join([_quote(step_id) + b":" + memo for step_id, memo in sorted(memos)]) + b"}"


_quote = msgspec.json.Encoder().encode


def _encode_defers(defers: Sequence[Deferred]) -> bytes:
    """The run's deferred functions, so that the app does not defer them again."""
    reported = {deferred.step_id: {"abortable": deferred.is_abortable} for deferred in defers}
    return b',"defers":' + msgspec.json.encode(dict(sorted(reported.items())))


def _assemble(data: CallData, *, use_api: bool) -> bytes:
    context: dict[str, Any] = {"also": [call.step_id for call in data.also]} if data.also else {}
    context |= {
        "attempt": data.call.attempt,
        "disable_immediate_execution": data.disable_immediate,
        "env": "",
        "fn_id": function_uuid(data.function_id),
        "function_slug": data.function_id,
        "generation_id": data.call.generation,
        "job_id": job_id_of(data.run_id, data.call.step_id),
        "max_attempts": data.max_attempts,
        "qi_id": data.request_id,
        "request_id": data.request_id,
        "run_id": data.run_id,
        "stack": {"current": len(data.memos), "stack": [step_id for step_id, _ in data.memos]},
        "step_id": data.call.step_id,
        "use_api": use_api,
    }
    steps = data.memos if data.step_input is None else [*data.memos, data.step_input]
    return b"".join(
        (
            b'{"ctx":',
            msgspec.json.encode(context),
            _encode_defers(data.defers) if data.defers else b"",
            b',"event":',
            data.events[0],
            b',"events":[',
            b"" if use_api else b",".join(data.events),
            b'],"steps":',
            b"{}" if use_api else join_memos(steps),
            b',"use_api":',
            b"true" if use_api else b"false",
            b',"version":',
            str(_SDK_DECIDES).encode(),
            b"}",
        )
    )


def _compile(pattern: bytes) -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # one character for each byte
    return re2.compile(pattern, options)


# re2 needs 2 ms for a megabyte, the standard library's re 50 ms, in one call that holds the interpreter's lock.
_LARGE = _compile(rb"(?:^|[^0-9.])[0-9]{16,}(?:$|[^0-9.eE])")
_FLOAT = _compile(rb"[0-9][.eE]")
_KEY_BEYOND_BMP = _compile(rb"(?:[\xf0-\xf4]|\\u[dD][89abAB])" + rb'(?:[^"\\]|\\(?s:.))*"[ \t\r\n]*:')
"""RFC 8785 sorts keys by UTF-16, and msgspec by code points: the order of keys outside of the basic plane differs. Each
pattern may also match inside of a string, which costs time but no correctness.
"""


def canonical_json(raw: bytes) -> bytes:
    """The canonical form of the JSON ``raw``.

    Integers that would be rounded keep their digits.
    """
    if _LARGE.search(raw) or _KEY_BEYOND_BMP.search(raw):
        try:
            return rfc8785.dumps(json.loads(raw))
        except (ValueError, RecursionError):
            pass
    decoder = _with_floats if _FLOAT.search(raw) else _plain
    return _sorted.encode(decoder.decode(raw))


def canonical_call(data: CallData) -> tuple[bytes, bytes]:
    """The body of a call to an app of another SDK, and the bytes to sign.

    Each event and memo is canonicalised separately, because one call into msgspec for all of them would hold the
    interpreter's lock for longer. A megabyte takes up to 0.1 s, so run large calls outside of the event loop.
    """
    canonical = msgspec.structs.replace(
        data,
        events=[canonical_json(event) for event in data.events],
        memos=[(step_id, canonical_json(memo)) for step_id, memo in data.memos],
        step_input=None if data.step_input is None else (data.step_input[0], canonical_json(data.step_input[1])),
    )
    body = build_body(canonical)
    return body, to_sign(body)


def to_sign(body: bytes) -> bytes:
    """The bytes to sign for a body that ``canonical_json`` made, at least in parts."""
    return canonicalize(body) or body if _LARGE.search(body) else body


def _canonical_float(text: str) -> msgspec.Raw:
    """A float in canonical form, as RFC 8785 requires.

    Without an exponent, ``repr`` writes the same digits as ECMAScript, to which RFC 8785 refers.
    """
    value = float(text)
    shortest = repr(value)
    if "e" in shortest:
        return msgspec.Raw(rfc8785.dumps(value))
    return msgspec.Raw((shortest.removesuffix(".0") if value else "0").encode())


_plain = msgspec.json.Decoder()
_with_floats = msgspec.json.Decoder(float_hook=_canonical_float)
_sorted = msgspec.json.Encoder(order="sorted")
