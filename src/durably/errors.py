"""Exceptions that Durably raises, including those of its engines.

Exceptions that decide how an answer is written, and those of engines, are defined with the wire.
"""

from durably.execution.asyncio_compat import ClockUnsupportedError as ClockUnsupportedError
from durably.execution.asyncio_compat import StepNotAwaitedError as StepNotAwaitedError
from durably.execution.replay import StepNestedError as StepNestedError
from durably.execution.replay import StepUnexpectedError as StepUnexpectedError
from durably.execution.step import MemoUnreadableError as MemoUnreadableError
from durably.execution.step import ReplayDivergedError as ReplayDivergedError
from durably.execution.step import StepIdUnstableError as StepIdUnstableError
from durably.execution.sync_call import AsyncUnsupportedError as AsyncUnsupportedError
from durably.execution.sync_call import StepIdAmbiguousError as StepIdAmbiguousError
from durably.protocol.durations import DurationInvalidError as DurationInvalidError
from durably.protocol.engine_errors import *  # noqa: F403
from durably.protocol.errors import DeadlineError as DeadlineError
from durably.protocol.errors import Error as Error
from durably.protocol.errors import ErrorCode
from durably.protocol.errors import FunctionConfigInvalidError as FunctionConfigInvalidError
from durably.protocol.errors import NonRetriableError as NonRetriableError
from durably.protocol.errors import RetryAfterError as RetryAfterError
from durably.protocol.errors import StepError as StepError
from durably.protocol.signatures import SignatureError as SignatureError
from durably.protocol.signatures import SigningKeyInvalidError as SigningKeyInvalidError


class BodyInvalidError(Error):
    """A request's body does not follow the protocol. The message names the position."""

    code = ErrorCode.BODY_INVALID
    include_stack = False


class BodyTooLargeError(Error):
    code = ErrorCode.BODY_TOO_LARGE
    include_stack = False
    is_retriable = False


class BodyLengthMissingError(Error):
    """A chunked body that the WSGI server does not decode."""

    code = ErrorCode.BODY_LENGTH_MISSING
    include_stack = False
    is_retriable = False


class BrowserRequestError(Error):
    """A web page called the endpoint of an app in development mode."""

    code = ErrorCode.BROWSER_REFUSED
    include_stack = False
    is_retriable = False


class CallMismatchError(Error):
    """A call's URL names another function or step than its signed body."""

    code = ErrorCode.CALL_MISMATCH
    include_stack = False
    is_retriable = False


class CallStaleError(Error):
    """The engine has given a call up.

    It may have made another call instead. Anything that this call does is void.
    """

    code = ErrorCode.CALL_STALE
    include_stack = False
    quiet = True


class CheckpointRefusedError(Error):
    """The engine does not take steps before their call has ended."""

    code = ErrorCode.CHECKPOINT_REFUSED
    include_stack = False


class EngineStoppingError(CheckpointRefusedError):
    """The engine stops in this process. The answer of the call has its steps."""


class EngineNotConfiguredError(Error):
    """A production client has no engine configured. There is no default."""

    code = ErrorCode.ENGINE_NOT_CONFIGURED


class EventKeyUnspecifiedError(Error):
    """Events cannot be sent in production mode without an event key."""

    code = ErrorCode.EVENT_KEY_UNSPECIFIED

    def __init__(self) -> None:
        super().__init__("no event key: give the client event_key or set DURABLY_EVENT_KEY (DURABLY_DEV=1 needs none)")


class FunctionNotServedError(Error):
    """An engine calls a function that this app does not serve."""

    code = ErrorCode.FUNCTION_NOT_FOUND
    include_stack = False


class MemoInvalidError(Error):
    """The stored result of a step does not fit the current type of the step."""

    code = ErrorCode.MEMO_INVALID
    include_stack = False


class MethodUnsupportedError(Error):
    """The endpoint does not answer the request's method.

    ``allowed`` are the methods that it answers, as the ``Allow`` header lists them.
    """

    code = ErrorCode.METHOD_UNSUPPORTED
    include_stack = False

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class OutputUnserializableError(Error):
    """The result of a function or step is not JSON."""

    code = ErrorCode.OUTPUT_UNSERIALIZABLE
    is_retriable = False
    include_stack = False


class QueryParamMissingError(Error):
    code = ErrorCode.QUERY_PARAM_MISSING
    include_stack = False


class QueryParamInvalidError(Error):
    code = ErrorCode.QUERY_PARAM_INVALID
    include_stack = False


class RegistrationFailedError(Error):
    """The engine refused a sync, or its answer was not valid."""

    code = ErrorCode.REGISTRATION_FAILED
    include_stack = False


class ServeOriginMissingError(Error):
    """An app in production does not know its own URL.

    It is not taken from a request's headers.
    """

    code = ErrorCode.SERVE_ORIGIN_MISSING
    include_stack = False


class ServerKindMismatchError(Error):
    code = ErrorCode.SERVER_KIND_MISMATCH
    include_stack = False


class SettingConflictError(FunctionConfigInvalidError):
    """Two variables of one setting have different values.

    The message names both, and shows neither value.
    """

    def __init__(self, ours: str, theirs: str) -> None:
        super().__init__(f"{ours} and {theirs} are two names of one setting, and have different values; unset {theirs}")


class SigningKeyMissingError(Error):
    """Production mode needs a signing key, and so do tokens of answers."""

    code = ErrorCode.SIGNING_KEY_UNSPECIFIED

    def __init__(
        self,
        message: str = "no signing key: give the client signing_key or set DURABLY_SIGNING_KEY; "
        "for development set DURABLY_DEV=1 or is_production=False",
    ) -> None:
        super().__init__(message)


class RunError(Error):
    """A run ended without a result. ``run_id`` is its id."""

    include_stack = False
    is_retriable = False

    def __init__(self, run_id: str, message: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class RunFailedError(RunError):
    """A run has failed. ``name``, ``message`` and ``stack`` are those of its function's error."""

    def __init__(self, run_id: str, message: str, name: str, stack: str | None) -> None:
        super().__init__(run_id, f"run {run_id} failed: {name}: {message}")
        self._name, self._message, self._stack = name, message, stack

    @property
    def message(self) -> str:
        return self._message

    @property
    def name(self) -> str:
        return self._name

    @property
    def stack(self) -> str | None:
        return self._stack


class RunCancelledError(RunError):
    """A run was cancelled."""


class RunSkippedError(RunError):
    """No run was started: flow control or a pause of the function skipped it. The message names the reason."""


class AnswerTokenError(Error, ValueError):
    """The token of an answer is not valid, or has expired. The message is for the person who followed a link."""

    include_stack = False
    is_retriable = False


class AskTimeoutError(Error, TimeoutError):
    """A run has not received a message, or not replied to it, in time.

    ``ask_id`` identifies the message: asked again with it, the run gets it only once.
    """

    include_stack = False

    def __init__(self, ask_id: str, message: str) -> None:
        super().__init__(message)
        self.ask_id = ask_id


class SendEventsError(Error):
    """Events were not accepted.

    ``ids`` are those of the accepted events. ``refusal`` is the engine's status of events that it will never accept:
    413 if they are too large, 400 if they are invalid. Otherwise it is ``None``.
    """

    code = ErrorCode.SEND_EVENT_FAILED

    def __init__(self, message: str, ids: list[str], refusal: int | None = None) -> None:
        super().__init__(message)
        self.ids, self.refusal = ids, refusal
        if refusal is not None:
            self.is_retriable = False


class EventUnserializableError(SendEventsError):
    """An event cannot be sent: it is not an ``Event``, or its data is not JSON.

    A retry does not help.
    """

    def __init__(self, message: str, ids: list[str] | None = None) -> None:
        super().__init__(message, ids or [], 400)


class SyncTooSoonError(Error):
    """Another unsigned sync of an app in production is under way, or has just failed."""

    code = ErrorCode.SYNC_TOO_SOON
    include_stack = False


class TransportError(Error):
    """An engine could not be reached, or the connection failed.

    The message names its origin, never the whole URL.
    """

    include_stack = False


class EngineNotStartedError(Error):
    """A test run used an in-process engine that the tests have not started."""

    include_stack = False


class URLInvalidError(Error, ValueError):
    code = ErrorCode.URL_INVALID
