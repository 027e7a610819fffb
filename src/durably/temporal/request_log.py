"""Web requests: their ids, and their log with the ids of the workflows that they used.

The id of a request passes to the workflow that the request starts, and to that workflow's activities. It is kept in a
context variable within a process, and in a header of Temporal's calls between processes. The header is not encrypted,
because an id is not a secret.

During a request, every call of the client records the workflow's id. The middlewares here log one line for each
request, with the ids. Alternatively, ``WorkflowIdFilter`` adds them to the records of an app's own logging. The
middlewares are for ASGI and WSGI. Django's is in ``durably.temporal.django``, and a mixin for Tornado's handlers in
``durably.temporal.tornado``.
"""

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadConverter

from durably.protocol.text import printable

logger = logging.getLogger("durably.temporal.requests")

HEADER = "durably-request-id"
"""The header of starts, activities, child workflows and continued workflows."""

HTTP_HEADER = "X-Request-ID"
_USABLE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

request_id: ContextVar[str | None] = ContextVar("durably_request_id", default=None)

noted_workflows: ContextVar[list[str] | None] = ContextVar("durably_workflow_ids", default=None)
"""The request's list, which its threads and tasks share."""


def current_request_id() -> str | None:
    """The id of the current web request.

    In an activity, it is the id of the request that started the activity's workflow.
    """
    return request_id.get()


@contextmanager
def web_request(id: str | None) -> Iterator[None]:
    """Give this id to workflows that start within ``with``, for an app that creates request ids itself."""
    token = request_id.set(id)
    try:
        yield
    finally:
        request_id.reset(token)


def usable_request_id(given: str | None) -> str | None:
    """The value of ``X-Request-ID`` if it is short printable text, else ``None``."""
    return given if given is not None and _USABLE.fullmatch(given) else None


def with_request_id(headers: Mapping[str, Payload], id: str | None) -> Mapping[str, Payload]:
    """The headers, with the id if there is one and they have none."""
    if id is None or HEADER in headers:
        return headers
    return {**headers, HEADER: PayloadConverter.default.to_payload(id)}


def read_request_id(headers: Mapping[str, Payload]) -> str | None:
    """The id in the headers, or ``None`` if there is none that can be read."""
    payload = headers.get(HEADER)
    if payload is None:
        return None
    try:
        id = PayloadConverter.default.from_payload(payload)
    except Exception:
        return None  # The header of another program with the same name.
    return usable_request_id(id) if isinstance(id, str) else None


class RequestIdFilter(logging.Filter):
    """Gives records ``request_id``. It is ``None`` outside of requests and activities."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "request_id"):
            record.request_id = request_id.get()
        return True


@contextmanager
def noting_workflows() -> Iterator[list[str]]:
    """The ids of workflows that the client uses within ``with``, in order of first use."""
    noted: list[str] = []
    token = noted_workflows.set(noted)
    try:
        yield noted
    finally:
        noted_workflows.reset(token)


def note_workflow(workflow_id: str) -> None:
    """Record the workflow's id for the current request, if there is one."""
    noted = noted_workflows.get()
    if noted is not None and workflow_id not in noted:
        noted.append(workflow_id)


class WorkflowIdFilter(logging.Filter):
    """Gives records ``workflow_ids``: a list, empty outside of requests."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.workflow_ids = list(noted_workflows.get() or ())
        return True


class RequestLog:
    """Logs one line for a request.

    An example: ``with RequestLog("POST", "/orders") as log: log.status = 202``. ``given_id`` is the request's
    ``X-Request-ID``. The workflows that it starts have the id in their worker's log.
    """

    def __init__(self, method: str, path: str, given_id: str | None = None) -> None:
        self.method, self.path = method, path
        self.request_id = current_request_id() or usable_request_id(given_id) or uuid.uuid4().hex
        self.status: int | None = None

    def __enter__(self) -> "RequestLog":
        self._start = time.perf_counter()
        self._contexts = ExitStack()
        self._contexts.enter_context(web_request(self.request_id))
        self._ids = self._contexts.enter_context(noting_workflows())
        return self

    def __exit__(self, *error: Any) -> None:
        self._contexts.close()
        status = self.status or (500 if error[0] is not None else 0)
        milliseconds = round((time.perf_counter() - self._start) * 1000, 1)
        fields = {
            "method": self.method,
            "path": self.path,
            "status": status,
            "milliseconds": milliseconds,
            "workflow_ids": self._ids,
            "request_id": self.request_id,
        }
        about = f" workflows: {printable(', '.join(self._ids))}" if self._ids else ""
        message = "%s %s %s in %s ms%s"
        # Paths are decoded: line ends in them could forge lines of the log.
        method, path = printable(self.method), printable(self.path)
        logger.info(message, method, path, status, milliseconds, about, extra={"fields": fields, **fields})


Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class RequestLogMiddleware:
    """``app.add_middleware(RequestLogMiddleware)`` in FastAPI, and any other ASGI app."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = HTTP_HEADER.lower().encode()
        given = next((value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name), None)
        with RequestLog(scope["method"], scope["path"], given) as log:

            async def note_status(message: Any) -> None:
                if message["type"] == "http.response.start":
                    log.status = message["status"]
                await send(message)

            await self._app(scope, receive, note_status)


class WsgiRequestLogMiddleware:
    """Logs one line for each request of a WSGI app.

    In Flask: ``app.wsgi_app = WsgiRequestLogMiddleware(app.wsgi_app)``. It does not wait for a streamed body.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        given = environ.get("HTTP_X_REQUEST_ID")
        with RequestLog(environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""), given) as log:

            def note_status(status: str, *rest: Any) -> Any:
                log.status = int(status.partition(" ")[0])
                return start_response(status, *rest)

            return self._app(environ, note_status)
