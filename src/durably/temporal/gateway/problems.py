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
from pydantic import ValidationError
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

from .messages import GatewayResponse
from .models import FailureCause

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

    def document(self) -> dict[str, Any]:
        title = self.kind.replace("-", " ").capitalize()
        return {
            "type": f"urn:durably:problem:{self.kind}",
            "title": title,
            "status": int(self.status),
            "detail": self.detail,
            **self.more,
        }

    def response(self) -> GatewayResponse:
        headers = {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store", **self.headers}
        return GatewayResponse(
            status_code=self.status, headers=headers, body=msgspec.json.encode(self.document(), enc_hook=str)
        )


def bad_request(detail: str, **more: Any) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, "bad-request", detail, **more)


def unknown_parameter(name: str, known: Sequence[str]) -> Problem:
    """An unknown query parameter. Its name comes from the client: shortened, in ASCII."""
    there_are = f"there are {', '.join(known)}" if known else "there are none"
    return Problem(
        HTTPStatus.BAD_REQUEST,
        "unknown-parameter",
        f"there is no query parameter {_shorten(name)!a} here: {there_are}",
        parameters=list(known),
    )


def repeated_parameter(name: str) -> Problem:
    """A repeated query parameter: frameworks and proxies read different ones."""
    return Problem(
        HTTPStatus.BAD_REQUEST,
        "repeated-parameter",
        f"the query parameter {_shorten(name)!a} is given more than once: give it once",
    )


def no_principal() -> Problem:
    """An ``Idempotency-Key`` without a principal. All such clients would share it."""
    return Problem(
        HTTPStatus.BAD_REQUEST,
        "no-principal",
        "an Idempotency-Key belongs to a principal, and this request has none: send no key, or authenticate. In the "
        "app, principal= of router(), blueprint(), routes() or urls() returns the principal; to let all callers share "
        'their keys, return the same string for each, such as principal=lambda request: "everyone"',
    )


def not_found(detail: str) -> Problem:
    return Problem(HTTPStatus.NOT_FOUND, "not-found", detail)


def too_large(limit: int) -> Problem:
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", f"the body has more than {limit} bytes")


def too_many_values(limit: int) -> Problem:
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-many-values", f"the body has more than {limit} values")


def refused(status: int) -> Problem:
    """A request that the framework itself refuses with this status."""
    known = HTTPStatus(status)
    return Problem(known, known.phrase.lower().replace(" ", "-"), (known.description or known.phrase).lower())


def _not_set_up(error: SearchAttributeError) -> Problem:
    return _unavailable(error.message, "the app's configuration is incomplete; see its log")


def unauthenticated(challenge: str = "Bearer") -> Problem:
    """The problem 401. ``challenge`` is the ``WWW-Authenticate`` header."""
    return Problem(
        HTTPStatus.UNAUTHORIZED,
        "unauthenticated",
        "authentication is needed",
        headers={"WWW-Authenticate": challenge},
    )


def unreadable() -> Problem:
    return bad_request("the body is incomplete, or does not match the headers")


_MAXIMUM_ERRORS = 100
_MAXIMUM_ERROR_TEXT = 200
"""Maximum characters of a message and of each part of a location, which the client may have chosen."""


def invalid_body(error: ValidationError, members: Sequence[str] = ()) -> Problem:
    """Errors of an input. More than a hundred are only counted.

    ``members`` are the fields of a body that the gateway defines. The error of an unknown field lists them.
    """
    count = error.error_count()
    if count > _MAXIMUM_ERRORS:
        return Problem(HTTPStatus.BAD_REQUEST, "invalid-input", f"the input has {count} errors", errors=[])
    errors: list[Any] = error.errors(include_url=False, include_input=False, include_context=False)
    for each in errors:
        if members and each["type"] == "extra_forbidden" and len(each["loc"]) == 1:
            each["msg"] += f": the body may have {', '.join(members)}"
    return invalid_input(errors)


def invalid_input(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """Pydantic's errors with their locations. The values are not repeated."""
    listed = [
        {"location": [_shorten(str(part)) for part in error["loc"]], "message": _shorten(error["msg"])}
        for error in errors[:_MAXIMUM_ERRORS]
    ]
    count = len(errors)
    return Problem(
        HTTPStatus.BAD_REQUEST,
        "invalid-input",
        f"the input has {count} error{'s' if count > 1 else ''}: see errors",
        errors=listed,
    )


def _shorten(text: str) -> str:
    return text if len(text) <= _MAXIMUM_ERROR_TEXT else f"{text[:_MAXIMUM_ERROR_TEXT]}…"


def to_problem(error: Exception) -> Problem:
    """The problem that the client gets for an exception."""
    if isinstance(error, Problem):
        return error
    for kinds, make in _PROBLEMS:
        if isinstance(error, kinds):
            problem: Problem = make(error)
            return problem
    logger.error("the gateway failed", exc_info=error)
    return internal_error()


def internal_error() -> Problem:
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error", "an unexpected error; the app's log has its details"
    )


def _unavailable(reason: str, detail: str = "the Temporal server cannot be reached now") -> Problem:
    """The server is unavailable. ``reason`` is logged for the app's operator."""
    _outages.log(reason)
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "server-unavailable",
        detail,
        headers={"Retry-After": RETRY_AFTER},
    )


def _cut_off(error: RPCError) -> Problem:
    return _unavailable(
        f"the connection to the Temporal server broke: {error.message}",
        "the connection to the Temporal server broke; the request may still have taken effect",
    )


def _timed_out(error: Any) -> Problem:
    if isinstance(error.__cause__, RPCError) and says_connection_broke(error.__cause__):
        return _cut_off(error.__cause__)
    return Problem(
        HTTPStatus.GATEWAY_TIMEOUT, "timed-out", "no answer in time; the request may still have taken effect"
    )


def no_worker(detail: str) -> Problem:
    return Problem(HTTPStatus.GATEWAY_TIMEOUT, "no-worker", detail)


def already_started(workflow_id: str, **more: Any) -> Problem:
    """The id is in use. ``more`` identifies the run, if the client may know it."""
    detail = f'the workflow "{workflow_id}" has already been started'
    return Problem(HTTPStatus.CONFLICT, "already-started", detail, workflow_id=workflow_id, **more)


def workflow_failed(error: WorkflowFailureError, **more: Any) -> Problem:
    """The workflow failed. ``more`` identifies it."""
    outcome = _OUTCOMES.get(type(error.cause), "failed")
    return Problem(
        HTTPStatus.FAILED_DEPENDENCY,
        f"workflow-{outcome.replace('_', '-')}",
        f"the workflow {_HAS[outcome]}",
        workflow_status=outcome,
        failure=_cause_documents(error.cause),
        **more,
    )


_OUTCOMES = {CancelledError: "cancelled", TerminatedError: "terminated", TimeoutError: "timed_out"}
_HAS = {
    "failed": "has failed",
    "cancelled": "was cancelled",
    "terminated": "was terminated",
    "timed_out": "has run out of time",
}


def _update_failed(error: WorkflowUpdateFailedError) -> Problem:
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "update-failed",
        "the workflow refused the update, or the update failed",
        failure=_cause_documents(error.cause),
    )


def _query_failed(error: WorkflowQueryFailedError) -> Problem:
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY, "query-failed", f"the workflow could not answer: {scrub(error.message)}"
    )


def _query_rejected(error: WorkflowQueryRejectedError) -> Problem:
    if error.status is PAUSED:
        return _paused()
    return Problem(HTTPStatus.CONFLICT, "query-rejected", "the workflow accepts no queries in its current status")


def _paused() -> Problem:
    detail = "the workflow is paused: it accepts no queries and updates until it is resumed"
    return Problem(HTTPStatus.CONFLICT, "workflow-paused", detail)


def _rpc_failed(error: RPCError) -> Problem:
    if error.status is RPCStatusCode.FAILED_PRECONDITION and error.message.startswith("Workflow is paused"):
        return _paused()
    if error.status is RPCStatusCode.UNAVAILABLE:
        return _unavailable(f"the Temporal server cannot be reached: {error.message}")
    if error.status in _STATUSES_OF_BROKEN_CONNECTIONS and says_connection_broke(error):
        return _cut_off(error)
    if error.status in (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED):
        return _timed_out(error)
    if error.status is RPCStatusCode.NOT_FOUND and error.message.startswith("Namespace "):
        # The app's settings are wrong. The client cannot correct them.
        return _unavailable(f"Temporal: {error.message}")
    if error.status is RPCStatusCode.FAILED_PRECONDITION and "no poller" in error.message:
        return no_worker("no worker has asked for the workflow's tasks recently: is one running?")
    if error.status is RPCStatusCode.UNAUTHENTICATED:
        return _unavailable(f"Temporal refuses the app's credentials: {error.message}")
    status, kind, is_public = _RPC_STATUSES.get(error.status, (HTTPStatus.BAD_GATEWAY, "server-failed", False))
    if not is_public:
        _outages.log(f"Temporal: {error.status.name}: {error.message}")
    headers = {"Retry-After": RETRY_AFTER} if status == HTTPStatus.TOO_MANY_REQUESTS else {}
    detail = scrub(error.message) if is_public else f"the Temporal server answered {error.status.name}"
    return Problem(status, kind, detail, headers=headers)


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

_PROBLEMS: list[tuple[type[Exception], Any]] = [
    (SearchAttributeError, _not_set_up),
    (TemporalUnreachableError, lambda error: _unavailable(error.message)),
    (WorkflowAlreadyStartedError, lambda error: already_started(error.workflow_id, run_id=error.run_id or "")),
    (WorkflowFailureError, workflow_failed),
    (WorkflowUpdateFailedError, _update_failed),
    (WorkflowQueryFailedError, _query_failed),
    (WorkflowQueryRejectedError, _query_rejected),
    (RPCTimeoutOrCancelledError, _timed_out),
    (RPCError, _rpc_failed),
]
EXCEPTIONS = tuple(kind for kind, _ in _PROBLEMS)
"""Exceptions of ``temporalio`` and the connection. Frameworks' exception handlers are registered for these."""


class _OutageLog:
    """Logs each error once in ten seconds, because in an outage all requests have it."""

    _PERIOD = 10.0
    _MAXIMUM_REMEMBERED = 100

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._logged: dict[str, float] = {}

    def log(self, text: str) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._logged.get(text, -self._PERIOD) < self._PERIOD:
                return
            if len(self._logged) >= self._MAXIMUM_REMEMBERED:
                self._logged.clear()
            self._logged[text] = now
        logger.error("%s", scrub(text))


_outages = _OutageLog()
_MAXIMUM_CAUSES = 20


def causes(error: BaseException | None) -> list[FailureCause]:
    """The chain of a failure's causes, from the outermost to the first.

    Details and stack traces are omitted, and credentials in messages are hidden.
    """
    chain: list[FailureCause] = []
    while error is not None and len(chain) < _MAXIMUM_CAUSES:
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


def _cause_documents(error: BaseException | None) -> list[dict[str, Any]]:
    return [cause.model_dump(exclude_none=True) for cause in causes(error)]
