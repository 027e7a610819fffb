"""Errors of functions and steps on the wire (spec §4.4.3, §5.2.2).

``Error`` is the base of every exception that Durably raises on purpose. The classes that decide how an answer is
written (whether and when it may be retried) are in this module, because both ``execution`` and ``comm`` need them.
``durably.errors`` exports all of them to users.
"""

import datetime as dt
import traceback
from enum import StrEnum
from typing import Any

import msgspec

from .limits import MAX_ERROR_CHARACTERS
from .text import keep_ends, read_duration

_NOTE_CHARACTERS = 100
"""The note between the ends of a text, at most."""
RUNAWAY_ERROR = "RunawayError"
"""The name of an engine's error: functions start each other endlessly. Each run of the chain fails with it."""


class ErrorCode(StrEnum):
    ASYNC_UNSUPPORTED = "async_unsupported"
    BODY_INVALID = "body_invalid"
    BODY_LENGTH_MISSING = "body_length_missing"
    BODY_TOO_LARGE = "body_too_large"
    BROWSER_REFUSED = "browser_refused"
    CALL_MISMATCH = "call_mismatch"
    CALL_STALE = "call_stale"
    CHECKPOINT_REFUSED = "checkpoint_refused"
    CLOCK_UNSUPPORTED = "clock_unsupported"
    DEADLINE = "deadline"
    DURATION_INVALID = "duration_invalid"
    ENGINE_NOT_CONFIGURED = "engine_not_configured"
    EVENT_KEY_UNSPECIFIED = "event_key_unspecified"
    FUNCTION_CONFIG_INVALID = "function_config_invalid"
    FUNCTION_NOT_FOUND = "function_not_found"
    HEADER_MISSING = "header_missing"
    MEMO_INVALID = "memo_invalid"
    MEMO_UNREADABLE = "memo_unreadable"
    METHOD_UNSUPPORTED = "method_unsupported"
    NON_RETRIABLE_ERROR = "non_retriable_error"
    OUTPUT_UNSERIALIZABLE = "output_unserializable"
    QUERY_PARAM_INVALID = "query_param_invalid"
    QUERY_PARAM_MISSING = "query_param_missing"
    REGISTRATION_FAILED = "registration_failed"
    REPLAY_DIVERGED = "replay_diverged"
    RETRY_AFTER_ERROR = "retry_after_error"
    SEND_EVENT_FAILED = "send_event_failed"
    SERVE_ORIGIN_MISSING = "serve_origin_missing"
    SERVER_KIND_MISMATCH = "server_kind_mismatch"
    SIGNING_KEY_UNSPECIFIED = "signing_key_unspecified"
    SIG_VERIFICATION_FAILED = "sig_verification_failed"
    STEP_ERRORED = "step_errored"
    STEP_ID_AMBIGUOUS = "step_id_ambiguous"
    STEP_ID_UNSTABLE = "step_id_unstable"
    STEP_NESTED = "step_nested"
    STEP_NOT_AWAITED = "step_not_awaited"
    STEP_UNEXPECTED = "step_unexpected"
    SYNC_TOO_SOON = "sync_too_soon"
    UNKNOWN = "unknown"
    URL_INVALID = "url_invalid"


class ErrorData(msgspec.Struct, kw_only=True):
    """An error on the wire.

    All fields are optional, because official SDKs omit any of them, or send null.
    """

    name: str | None = None
    message: str | None = None
    stack: str | None = None
    code: str | None = None
    cause: Any = None
    data: Any = None

    def to_wire(self) -> dict[str, Any]:
        wire: dict[str, Any] = {"code": self.code, "message": self.message or "", "name": self.name or "Error"}
        if self.stack is not None:
            wire["stack"] = self.stack
        if self.cause is not None:
            wire["cause"] = self.cause
        if self.data is not None:
            wire["data"] = self.data
        return wire


class Error(Exception):
    """Base of Durably's exceptions. ``code`` names the kind of failure on the wire."""

    code: ErrorCode = ErrorCode.UNKNOWN
    is_retriable: bool = True
    include_stack: bool = True

    @property
    def message(self) -> str:
        return error_message(self)

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def stack(self) -> str | None:
        return format_stack(self) if self.include_stack else None

    def __reduce__(self) -> tuple[Any, ...]:
        # Python would call the class with ``args``, but constructors take more, or other, arguments.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[Error], args: tuple[Any, ...], attributes: dict[str, Any]) -> Error:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class FunctionConfigInvalidError(Error, ValueError):
    """A function's or client's configuration is wrong.

    The message names the function and the option.
    """

    code = ErrorCode.FUNCTION_CONFIG_INVALID
    is_retriable = False


class NonRetriableError(Error):
    """Raise in a function or step to fail it permanently, without further attempts.

    ``quiet`` keeps the error out of the app's log.
    """

    code = ErrorCode.NON_RETRIABLE_ERROR
    is_retriable = False

    def __init__(self, message: str | None = None, quiet: bool = False) -> None:
        super().__init__(message or "")
        self.quiet = quiet


class RetryAfterError(Error):
    """Raise in a function or step to choose the time of its next attempt.

    ``retry_after`` is a string like ``"5m"``, a ``timedelta``, milliseconds, or a ``datetime`` (naive ones are local
    time). The engine clips it to one second … 24 hours. ``quiet`` keeps the error out of the app's log.
    """

    code = ErrorCode.RETRY_AFTER_ERROR

    def __init__(
        self,
        message: str | None,
        retry_after: int | str | dt.timedelta | dt.datetime,
        quiet: bool = False,
    ) -> None:
        super().__init__(message or "")
        given = retry_after
        if isinstance(given, str):
            retry_after = read_duration(given)  # type: ignore[assignment]
        if not isinstance(retry_after, int | dt.timedelta | dt.datetime):
            raise TypeError(
                f'retry_after is a string like "5m", milliseconds, a timedelta or a datetime, not {given!r}'
            )
        self.retry_after: dt.timedelta | dt.datetime = (
            dt.timedelta(milliseconds=retry_after) if isinstance(retry_after, int) else retry_after
        )
        self.quiet = quiet


class DeadlineError(Error, TimeoutError):
    """A ``group.timeout`` is over.

    Not retriable: it would be over again at every replay.
    """

    code = ErrorCode.DEADLINE
    is_retriable = False


class StepError(Error):
    """A step has finally failed.

    The awaited step raises it, and the function may catch it.

    The original exception was raised in another call. Only its ``name``, ``message`` and ``stack`` remain, and its
    ``code`` if it was one of Durably's. Not retriable: the step's own attempts are used up (spec §5.2.2).
    """

    code = ErrorCode.STEP_ERRORED
    is_retriable = False

    def __init__(self, message: str, name: str, stack: str | None, code: str | None = None) -> None:
        super().__init__(message)
        self._message, self._name, self._stack = message, name, stack
        if code in _TOLD_CODES:
            self.code = ErrorCode(code)

    @property
    def message(self) -> str:
        return self._message

    @property
    def name(self) -> str:
        return self._name

    @property
    def stack(self) -> str | None:
        return self._stack


_TOLD_CODES = frozenset(ErrorCode) - {ErrorCode.UNKNOWN}
"""The codes of a step's error that are those of the ``StepError`` too."""


def format_stack(error: BaseException) -> str:
    """The traceback as Python prints it, causes included."""
    return _encodable("".join(traceback.format_exception(error)))


def error_message(error: BaseException) -> str:
    """The exception's message, if its ``__str__`` returns one that UTF-8 can encode.

    Otherwise a sentence about the failure.
    """
    try:
        return _encodable(str(error))
    except Exception as failure:
        return f"{type(error).__name__}.__str__ raised {type(failure).__name__}"


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def is_retriable(error: BaseException) -> bool:
    """Whether another attempt can help.

    For an exception group, as ``asyncio.TaskGroup`` raises: whether it can help for any of its errors.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(is_retriable(inner) for inner in error.exceptions)
    return error.is_retriable if isinstance(error, Error) else True


def is_quiet(error: BaseException) -> bool:
    return bool(getattr(error, "quiet", False))


def describe_error(error: BaseException) -> ErrorData:
    """An exception as the wire carries it. Name, message and traceback are the user's own."""
    described = ErrorData(code=ErrorCode.UNKNOWN, message=error_message(error), name=type(error).__name__, stack=None)
    if not isinstance(error, Error):
        described.stack = format_stack(error)
        return shorten_error(described)
    stack = error.stack
    return shorten_error(
        ErrorData(
            code=error.code,
            message=_encodable(error.message),
            name=_encodable(error.name),
            stack=None if stack is None else _encodable(stack),
        )
    )


def shorten_error(error: ErrorData) -> ErrorData:
    """The error with the two ends of a long message or traceback.

    Those of more than ``MAX_ERROR_CHARACTERS`` are long. An error whose cause or data are still too large has neither.
    """
    message, stack = _shorten(error.message), _shorten(error.stack)
    if message is not error.message or stack is not error.stack:
        error = msgspec.structs.replace(error, message=message, stack=stack)
    if error.cause is None and error.data is None:
        return error
    if len(msgspec.json.encode([error.cause, error.data])) <= MAX_ERROR_CHARACTERS:
        return error
    return msgspec.structs.replace(error, cause=None, data=None)


def _shorten(text: str | None) -> str | None:
    if text is None or len(text) <= MAX_ERROR_CHARACTERS:
        return text
    return keep_ends(text, MAX_ERROR_CHARACTERS - _NOTE_CHARACTERS, "not kept")
