"""App answers to calls: parsing and verification of their signatures.

The source is the spec, §4.4.3 and §9. The functions are pure.
"""

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from durably.protocol.call import TooDeepError, decode
from durably.protocol.durations import parse_retry_after
from durably.protocol.errors import ErrorData, shorten_error
from durably.protocol.headers import Header
from durably.protocol.limits import MAX_STEP_OUTPUT_BYTES
from durably.protocol.opcodes import Op
from durably.protocol.signatures import SignatureError, verify, verify_answer

from .policy import clip_retry_after

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
    retry_after = headers.get(Header.RETRY_AFTER)
    retry_at = _read_retry_after(retry_after, now) if retry_after else None
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


def _read_retry_after(text: str, now_ms: int) -> int | None:
    now = dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC)
    wanted = parse_retry_after(text, now)
    return round(clip_retry_after(wanted, now).timestamp() * 1000) if wanted else None


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
