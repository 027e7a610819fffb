"""Errors as problem documents (RFC 9457), with their status codes.

The gateway raises ``Problem``. ``to_problem`` converts the exceptions of ``temporalio``. A problem never contains the
server's address, credentials, or the message of an unexpected exception: these are logged.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from pydantic import BaseModel, ValidationError
from temporalio.client import (
    RPCTimeoutOrCancelledError,
    WorkflowFailureError,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
)
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    ChildWorkflowError,
    TerminatedError,
    TimeoutError,
    WorkflowAlreadyStartedError,
)
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal.compat import PAUSED, says_connection_broke
from durably.temporal.errors import SearchAttributeError, TemporalUnreachableError, scrub

from .messages import FailureCause, GatewayResponse

logger = logging.getLogger("durably.temporal")

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = "2"
"""Seconds after which a client may repeat a request that a busy or unreachable server did not answer."""

_PASSING = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})


class Problem(Exception):
    """An error response. ``kind`` is stable, for programs; ``detail`` is for users."""

    def __init__(
        self, status: HTTPStatus, kind: str, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = dict(headers or {})
        self.more = more

    @property
    def passes(self) -> bool:
        """Whether a repetition may succeed soon: the server is down, slow or busy."""
        return self.status in _PASSING

    def response(self) -> GatewayResponse:
        document = {
            "type": f"urn:durably:problem:{self.kind}",
            "title": self.kind.replace("-", " ").capitalize(),
            "status": int(self.status),
            "detail": self.detail,
            **self.more,
        }
        return GatewayResponse(
            status_code=self.status,
            headers={"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store", **self.headers},
            body=msgspec.json.encode(document, enc_hook=_to_plain),
        )


def _to_plain(value: Any) -> Any:
    return value.model_dump(exclude_none=True) if isinstance(value, BaseModel) else str(value)


class Unauthenticated(Problem):
    """The problem 401, which ``authorize`` may raise. ``challenge`` is the ``WWW-Authenticate`` header."""

    def __init__(self, challenge: str = "Bearer") -> None:
        headers = {"WWW-Authenticate": challenge}
        super().__init__(HTTPStatus.UNAUTHORIZED, "unauthenticated", "authentication is needed", headers=headers)


def bad_request(detail: str, **more: Any) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, "bad-request", detail, **more)


def not_found(detail: str) -> Problem:
    return Problem(HTTPStatus.NOT_FOUND, "not-found", detail)


def too_large(limit: int) -> Problem:
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", f"the body has more than {limit} bytes")


def refused(status: int) -> Problem:
    """A request that the framework itself refuses with this status."""
    known = HTTPStatus(status)
    return Problem(known, known.phrase.lower().replace(" ", "-"), (known.description or known.phrase).lower())


def unreadable() -> Problem:
    return bad_request("the body is incomplete, or does not match the headers")


_MAXIMUM_ERRORS = 100
_MAXIMUM_ERROR_TEXT = 200
"""Maximum characters of a message and of each part of a location, which the client may have chosen."""


def invalid_input(error: ValidationError) -> Problem:
    """Errors of an input, without its values. More than a hundred are only counted."""
    count = error.error_count()
    if count > _MAXIMUM_ERRORS:
        return Problem(HTTPStatus.BAD_REQUEST, "invalid-input", f"the input has {count} errors", errors=[])
    return invalid_values(error.errors(include_url=False, include_input=False, include_context=False))


def invalid_values(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """Pydantic's errors, each with ``loc`` and ``msg``."""
    return Problem(
        HTTPStatus.BAD_REQUEST,
        "invalid-input",
        f"the input has {len(errors)} error{'s' if len(errors) > 1 else ''}: see errors",
        errors=[
            {"location": [shorten(str(part)) for part in error["loc"]], "message": shorten(error["msg"])}
            for error in errors[:_MAXIMUM_ERRORS]
        ],
    )


def shorten(text: str) -> str:
    """A text that the client may have chosen, of limited length."""
    return text if len(text) <= _MAXIMUM_ERROR_TEXT else f"{text[:_MAXIMUM_ERROR_TEXT]}…"


EXCEPTIONS: tuple[type[Exception], ...] = (
    SearchAttributeError,
    TemporalUnreachableError,
    WorkflowAlreadyStartedError,
    WorkflowFailureError,
    WorkflowUpdateFailedError,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    RPCTimeoutOrCancelledError,
    RPCError,
)
"""Exceptions of ``temporalio`` and the connection. Frameworks' exception handlers are registered for these."""


def to_problem(error: Exception) -> Problem:
    """The problem that the client gets for an exception."""
    match error:
        case Problem():
            return error
        case SearchAttributeError():
            return _unavailable(error.message, "the app's configuration is incomplete; see its log")
        case TemporalUnreachableError():
            return _unavailable(error.message)
        case WorkflowAlreadyStartedError():
            return already_started(error.workflow_id, run_id=error.run_id or "")
        case WorkflowFailureError():
            return workflow_failed(error)
        case WorkflowUpdateFailedError():
            detail = "the workflow refused the update, or the update failed"
            failure = causes(error.cause)
            return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "update-failed", detail, failure=failure)
        case WorkflowQueryFailedError():
            detail = f"the workflow could not answer: {scrub(error.message)}"
            return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "query-failed", detail)
        case WorkflowQueryRejectedError(status=status):
            detail = "the workflow accepts no queries in its current status"
            return _paused() if status is PAUSED else Problem(HTTPStatus.CONFLICT, "query-rejected", detail)
        case RPCTimeoutOrCancelledError():
            cause = error.__cause__
            return _cut_off(cause) if isinstance(cause, RPCError) and says_connection_broke(cause) else _timed_out()
        case RPCError():
            return _rpc_problem(error)
    logger.error("the gateway failed", exc_info=error)
    return internal_error()


def internal_error() -> Problem:
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error", "an unexpected error; the app's log has its details"
    )


def already_started(workflow_id: str, **more: Any) -> Problem:
    """The id is in use. ``more`` identifies the run, if the client may know it."""
    detail = f'the workflow "{workflow_id}" has already been started'
    return Problem(HTTPStatus.CONFLICT, "already-started", detail, workflow_id=workflow_id, **more)


_OUTCOMES = {
    CancelledError: ("cancelled", "was cancelled"),
    TerminatedError: ("terminated", "was terminated"),
    TimeoutError: ("timed_out", "has run out of time"),
}


def workflow_failed(error: WorkflowFailureError, **more: Any) -> Problem:
    """The workflow failed. ``more`` identifies it."""
    status, text = _OUTCOMES.get(type(error.cause), ("failed", "has failed"))
    return Problem(
        HTTPStatus.FAILED_DEPENDENCY,
        f"workflow-{status.replace('_', '-')}",
        f"the workflow {text}",
        workflow_status=status,
        failure=causes(error.cause),
        **more,
    )


def no_worker(detail: str) -> Problem:
    return Problem(HTTPStatus.GATEWAY_TIMEOUT, "no-worker", detail)


def _paused() -> Problem:
    detail = "the workflow is paused: it accepts no queries and updates until it is resumed"
    return Problem(HTTPStatus.CONFLICT, "workflow-paused", detail)


def _unavailable(reason: str, detail: str = "the Temporal server cannot be reached now") -> Problem:
    """The server is unavailable. ``reason`` is logged for the app's operator."""
    _log_outage(reason)
    headers = {"Retry-After": RETRY_AFTER}
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "server-unavailable", detail, headers=headers)


def _cut_off(error: RPCError) -> Problem:
    return _unavailable(
        f"the connection to the Temporal server broke: {error.message}",
        "the connection to the Temporal server broke; the request may still have taken effect",
    )


def _timed_out() -> Problem:
    detail = "no answer in time; the request may still have taken effect"
    return Problem(HTTPStatus.GATEWAY_TIMEOUT, "timed-out", detail)


_STATUSES_OF_BROKEN_CONNECTIONS = (RPCStatusCode.UNKNOWN, RPCStatusCode.INTERNAL, RPCStatusCode.CANCELLED)

_RPC_STATUSES = {
    RPCStatusCode.NOT_FOUND: (HTTPStatus.NOT_FOUND, "not-found", True),
    RPCStatusCode.ALREADY_EXISTS: (HTTPStatus.CONFLICT, "already-started", True),
    RPCStatusCode.INVALID_ARGUMENT: (HTTPStatus.BAD_REQUEST, "bad-request", True),
    RPCStatusCode.OUT_OF_RANGE: (HTTPStatus.BAD_REQUEST, "bad-request", True),
    RPCStatusCode.FAILED_PRECONDITION: (HTTPStatus.CONFLICT, "conflict", True),
    RPCStatusCode.ABORTED: (HTTPStatus.CONFLICT, "conflict", True),
    RPCStatusCode.PERMISSION_DENIED: (HTTPStatus.FORBIDDEN, "forbidden", False),
    RPCStatusCode.RESOURCE_EXHAUSTED: (HTTPStatus.TOO_MANY_REQUESTS, "too-many-requests", False),
    RPCStatusCode.UNIMPLEMENTED: (HTTPStatus.NOT_IMPLEMENTED, "not-implemented", False),
}
"""Status, kind, and whether the client may see the server's message."""


def _rpc_problem(error: RPCError) -> Problem:
    if error.status is RPCStatusCode.FAILED_PRECONDITION and error.message.startswith("Workflow is paused"):
        return _paused()
    if error.status is RPCStatusCode.UNAVAILABLE:
        return _unavailable(f"the Temporal server cannot be reached: {error.message}")
    if error.status in _STATUSES_OF_BROKEN_CONNECTIONS and says_connection_broke(error):
        return _cut_off(error)
    if error.status in (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED):
        return _timed_out()
    if error.status is RPCStatusCode.NOT_FOUND and error.message.startswith("Namespace "):
        # The app's settings are wrong. The client cannot correct them.
        return _unavailable(f"Temporal: {error.message}")
    if error.status is RPCStatusCode.FAILED_PRECONDITION and "no poller" in error.message:
        return no_worker("no worker has asked for the workflow's tasks recently: is one running?")
    if error.status is RPCStatusCode.UNAUTHENTICATED:
        return _unavailable(f"Temporal refuses the app's credentials: {error.message}")
    status, kind, is_public = _RPC_STATUSES.get(error.status, (HTTPStatus.BAD_GATEWAY, "server-failed", False))
    if not is_public:
        _log_outage(f"Temporal: {error.status.name}: {error.message}")
    headers = {"Retry-After": RETRY_AFTER} if status == HTTPStatus.TOO_MANY_REQUESTS else {}
    detail = scrub(error.message) if is_public else f"the Temporal server answered {error.status.name}"
    return Problem(status, kind, detail, headers=headers)


_PERIOD = 10.0
_lock = threading.Lock()
_logged: dict[str, float] = {}


def _log_outage(text: str) -> None:
    """Log each error once in ten seconds, because in an outage all requests have it."""
    now = time.monotonic()
    with _lock:
        if now - _logged.get(text, -_PERIOD) < _PERIOD:
            return
        if len(_logged) >= 100:
            _logged.clear()
        _logged[text] = now
    logger.error("%s", scrub(text))


def causes(error: BaseException | None) -> list[FailureCause]:
    """The chain of a failure's causes, from the outermost to the first.

    Details and stack traces are omitted, and credentials in messages are hidden.
    """
    chain: list[FailureCause] = []
    while error is not None and len(chain) < 20:
        chain.append(_cause(error))
        error = error.__cause__
    return chain


def _cause(error: BaseException) -> FailureCause:
    cause = FailureCause(type=type(error).__name__, message=scrub(getattr(error, "message", "") or str(error)))
    if isinstance(error, ApplicationError):
        cause.type = error.type or cause.type
        cause.non_retryable = error.non_retryable or None
    elif isinstance(error, ActivityError):
        cause.activity = error.activity_type
        cause.retry_state = error.retry_state.name.lower() if error.retry_state else None
    elif isinstance(error, ChildWorkflowError):
        cause.workflow = error.workflow_type
        cause.retry_state = error.retry_state.name.lower() if error.retry_state else None
    elif isinstance(error, TimeoutError) and error.type is not None:
        cause.timeout = error.type.name.lower()
    return cause
