"""Calls to apps: the body of a call, built from stored bytes, and its answer, with the checks of its signature.

Pure. The source is the spec, §4.4 and §9.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import re2
import rfc8785

from durably.protocol.call import CheckpointRequest, TooDeepError, decode, function_uuid
from durably.protocol.engine_errors import CheckpointInvalidError
from durably.protocol.errors import ErrorData, shorten_error
from durably.protocol.headers import Header
from durably.protocol.limits import MAX_CALL_BODY_BYTES, MAX_STEP_OUTPUT_BYTES
from durably.protocol.opcodes import Op
from durably.protocol.signatures import SignatureError, canonicalize, verify, verify_answer

from .backoff import read_retry_after
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
    - ``parallel_steps``: See ``parallel_steps_of``.
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
    parallel_steps: int = 0

    @property
    def request_id(self) -> str:
        """Identifies this call, also for checkpoints without a generation."""
        return f"{self.run_id}.{self.call.generation}"


def parallel_steps_of(call: Call, *, disable_immediate: bool, has_limits: bool, room: int) -> int:
    """The number of new steps that an app may execute in a call if it finds several at once.

    0 if the engine must call for each of them: the function has concurrency limits, which count calls, or steps of the
    run have calls of their own already. ``room`` is the number of steps that the run may still have.
    """
    return 0 if has_limits or disable_immediate or call.attempt or not call.is_discovery else max(room, 0)


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
    return _sorted.encode({step_id: msgspec.Raw(memo) for step_id, memo in memos})


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
        **({"parallel_steps": data.parallel_steps} if data.parallel_steps else {}),
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


_EXCERPT_LENGTH = 300


class Returned(msgspec.Struct, frozen=True, tag=True):
    """The function's return value, JSON."""

    output: bytes


class ReportedOps(msgspec.Struct, frozen=True, tag=True):
    """The ops that an app reports in answer to a call.

    ``races`` is set if the app predates parallel modes. Each of its parallel steps then requests discovery.
    """

    ops: list[Op]
    no_retry: bool = False
    retry_at: int | None = None
    races: bool = False


class AttemptFailed(msgspec.Struct, frozen=True, tag=True):
    """A failed attempt of a call.

    ``written`` is the error's JSON from the app; ``None`` if there is none.
    """

    error: ErrorData
    no_retry: bool = False
    retry_at: int | None = None
    written: bytes | None = None


class Unreached(msgspec.Struct, frozen=True, tag=True):
    """The call did not reach the app, so it uses up no attempt."""

    error: ErrorData


Answer = Returned | ReportedOps | AttemptFailed | Unreached


class _Streamed(msgspec.Struct):
    """The status, headers and body inside a streamed answer.

    They replace those of the response, and are known only when the function has ended.
    """

    status: int
    headers: dict[str, Any] = {}
    body: msgspec.Raw = msgspec.Raw(b"null")


_ops_decoder = msgspec.json.Decoder(list[Op])
_op_decoder = msgspec.json.Decoder(Op)
_streamed_decoder = msgspec.json.Decoder(_Streamed)
_error_decoder = msgspec.json.Decoder(ErrorData)
_text_decoder = msgspec.json.Decoder(str)
_raw_decoder = msgspec.json.Decoder(msgspec.Raw)


def failed(name: str, message: str, *, no_retry: bool = False) -> AttemptFailed:
    return AttemptFailed(error=ErrorData(name=name, message=message), no_retry=no_retry)


def _invalid(message: str, error: msgspec.DecodeError) -> AttemptFailed:
    """The failed attempt for an answer that cannot be read.

    A truncated or malformed answer may be complete at the next attempt, so it is retried. Too deep nesting will not
    change, so it is not retried.
    """
    return failed("AnswerInvalidError", message, no_retry=isinstance(error, TooDeepError))


Refuse = Callable[[int, Mapping[str, str], bytes, bool], AttemptFailed | None]
"""Function ``(status, headers, body, is_streamed)`` that returns a failed attempt if the answer is not from the app."""


def read_answer(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    now: int,
    refuse: Refuse | None = None,
    max_output_bytes: int = MAX_STEP_OUTPUT_BYTES,
) -> Answer:
    """Read an app's answer to a call.

    ``headers`` has lower-case names. ``now`` is milliseconds since the epoch.
    """
    was_streamed = status == 201
    if was_streamed:
        try:
            streamed = decode(_streamed_decoder, body)
            body = _unwrap_text(bytes(streamed.body))
        except msgspec.DecodeError as error:
            # An unsigned answer is always retried.
            message = f"the app's streamed answer is cut short or malformed: {error}"
            return _invalid(message, error) if refuse is None else failed("AnswerInvalidError", message)
        inner = {name.lower(): str(value) for name, value in streamed.headers.items() if value is not None}
        status, headers = streamed.status, {**headers, **inner}
    if refuse is not None and (refused := refuse(status, headers, body, was_streamed)) is not None:
        return refused
    no_retry = headers.get(Header.NO_RETRY, "").strip().lower() == "true"
    retry_at = read_retry_after(headers.get(Header.RETRY_AFTER), now)
    if not 200 <= status < 300:
        raised, written = _read_error(status, headers, body)
        return AttemptFailed(raised, no_retry, retry_at, written)
    if not headers.get(Header.SDK):
        return failed(
            "NotAnAppError",
            f"the answer (status {status}) has no {Header.SDK} header, so it is not from an app: check that the "
            "app's URL leads to its endpoint, and not to a login page or a proxy",
        )
    if status == 206:
        return _read_ops(headers, body, no_retry, retry_at)
    return _read_output(body, max_output_bytes)


def _read_output(body: bytes, max_bytes: int) -> Answer:
    if len(body) > max_bytes:
        message = f"the function returned {len(body)} bytes; at most {max_bytes} are allowed"
        return failed("OutputTooLargeError", message, no_retry=True)
    body = body.strip() or b"null"
    try:
        decode(_raw_decoder, body)
    except TooDeepError as error:
        return _invalid(f"the function's return value cannot be read: {error}", error)
    except msgspec.DecodeError as error:
        return _invalid(f"the function's return value is not JSON: {_excerpt(body)}", error)
    return Returned(body)


def _read_ops(headers: Mapping[str, str], body: bytes, no_retry: bool, retry_at: int | None) -> Answer:
    try:
        # The first SDKs sent a single op instead of a list.
        ops = [decode(_op_decoder, body)] if body.lstrip().startswith(b"{") else decode(_ops_decoder, body)
    except msgspec.DecodeError as error:
        return _invalid(f"the app's answer is not a list of ops: {error}", error)
    ops = [shorten_op_error(op) for op in ops]
    races = headers.get(Header.REQUEST_VERSION, "2").strip() in ("0", "1")
    return ReportedOps(ops=ops, no_retry=no_retry, retry_at=retry_at, races=races)


def shorten_op_error(op: Op) -> Op:
    """The op of a step, with the ends of a long error."""
    if op.error is None or (short := shorten_error(op.error)) is op.error:
        return op
    return msgspec.structs.replace(op, error=short)


def _read_error(status: int, headers: Mapping[str, str], body: bytes) -> tuple[ErrorData, bytes | None]:
    """The error that a function raised, and its JSON from the app, if any.

    If the answer is not from an app, the error describes the answer.
    """
    try:
        written = _unwrap_text(body)
        error = decode(_error_decoder, written)
        if error.message or error.name:
            short = shorten_error(error)
            if short is not error:
                return short, msgspec.json.encode(short.to_wire())
            return error, written if error.name else None
    except msgspec.DecodeError:
        pass
    return ErrorData(name="CallFailedError", message=describe_failure(status, headers, body)), None


def describe_failure(status: int, headers: Mapping[str, str], body: bytes) -> str:
    """Describe the source and content of an answer that is not from a function."""
    source = "the app" if headers.get(Header.SDK) else "something other than the app (a proxy, perhaps)"
    return f"{source} answered with status {status}: {_excerpt(body)}"


def _unwrap_text(body: bytes) -> bytes:
    """Unwrap JSON in a JSON string.

    Some SDKs double-encode errors and streamed answers.
    """
    stripped = body.strip()
    return decode(_text_decoder, stripped).encode() if stripped.startswith(b'"') else stripped


def _excerpt(body: bytes) -> str:
    text = body[:_EXCERPT_LENGTH].decode(errors="replace").strip()
    return (repr(text) + ("…" if len(body) > _EXCERPT_LENGTH else "")) if text else "an empty body"


_ECHOED = (
    "the app's answer (status {status}) is not used, because it is a signed request of the "
    "engine's own that was sent back; check what answers at the app's URL"
)


class AnswerVerification(msgspec.Struct, frozen=True):
    """Checks the answers to one call.

    - ``keys``: The engine's signing keys.
    - ``call_signature``: The call's signature.
    - ``now``: Unix seconds.
    - ``signs_whole``: The app announced at its sync that it signs whole answers.
    - ``was_sent``: Returns whether the engine itself sent a signature header.
    """

    keys: tuple[str | None, str | None]
    call_signature: str
    signs_whole: bool
    now: float
    was_sent: Callable[[str], bool]

    def refuse(self, status: int, headers: Mapping[str, str], body: bytes, was_streamed: bool) -> AttemptFailed | None:
        """The failed attempt for a bad signature; ``None`` if the signature is valid.

        Always retriable, after the usual delay, because unsigned headers have no effect. ``headers`` has lower-case
        names.
        """
        signature = headers.get(Header.SIGNATURE)
        whole_signature = headers.get(Header.ANSWER_SIGNATURE) if self.signs_whole else None
        if not (signature or whole_signature):
            return failed("AnswerNotSignedError", _explain_unsigned(status, headers, body, was_streamed))
        try:
            if self.signs_whole:
                verify_answer(status, headers, body, call_signature=self.call_signature, keys=self.keys)
                return None
            verify(body, signature, self.keys, self.now)
            if self.was_sent(signature or ""):
                return failed("AnswerSignatureError", _ECHOED.format(status=status))
        except SignatureError as error:
            advice = "give app and engine the same DURABLY_SIGNING_KEY"
            if self.signs_whole and not whole_signature:
                advice = "if an older version of the app runs now, sync it again"
            message = f"the app's answer (status {status}) is not used, since its signature is wrong: {error}; {advice}"
            return failed("AnswerSignatureError", message)
        return None


def _explain_unsigned(status: int, headers: Mapping[str, str], body: bytes, was_streamed: bool) -> str:
    if status in (401, 403):
        advice = (
            "most likely the app has another signing key than the engine (DURABLY_SIGNING_KEY), or their clocks are "
            "more than five minutes apart"
        )
    elif was_streamed:
        advice = (
            "the official Python SDK does not sign streamed answers: switch streaming off in the app "
            "(INNGEST_STREAMING=disable), or take its answers unsigned (durably start --unsigned-answers-of APP)"
        )
    elif 200 <= status < 300 and headers.get(Header.SDK):
        advice = (
            "run the app in production mode, with the engine's DURABLY_SIGNING_KEY; if its SDK signs no answers, name "
            "the app to `durably start --unsigned-answers-of`"
        )
    else:
        advice = "check what answers at the app's URL"
    return f"the app's answer is not used, since it is not signed: {describe_failure(status, headers, body)}; {advice}"
