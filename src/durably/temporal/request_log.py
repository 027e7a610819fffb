"""The log of web requests, with the ids of the workflows that a request used.

During a request, every call of the client records the workflow's id. The middlewares here log one line for each
request, with the ids. Alternatively, ``WorkflowIdFilter`` adds them to the records of an app's own logging.

The middlewares are for ASGI and WSGI. Django's is in ``durably.temporal.django``, and a mixin for Tornado's handlers in
``durably.temporal.tornado``.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from durably.protocol.text import printable

from .request_ids import HTTP_HEADER, choose_request_id, current_request_id, web_request

logger = logging.getLogger("durably.temporal.requests")

noted_workflows: ContextVar[list[str] | None] = ContextVar("durably_workflow_ids", default=None)
"""The request's list, which its threads and tasks share."""


@contextmanager
def noting_workflows() -> Iterator[list[str]]:
    """The ids of workflows that the client uses within ``with``.

    They are in order of first use.
    """
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
        self.request_id = current_request_id() or choose_request_id(given_id)
        self.status: int | None = None
        self._noting = noting_workflows()
        self._identified = web_request(self.request_id)

    def __enter__(self) -> "RequestLog":
        self._start = time.perf_counter()
        self._identified.__enter__()
        self._ids = self._noting.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._noting.__exit__(None, None, None)
        self._identified.__exit__(None, None, None)
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
        with RequestLog(scope["method"], scope["path"], _header(scope)) as log:

            async def note_status(message: Any) -> None:
                if message["type"] == "http.response.start":
                    log.status = message["status"]
                await send(message)

            await self._app(scope, receive, note_status)


def _header(scope: Scope) -> str | None:
    name = HTTP_HEADER.lower().encode()
    return next((value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name), None)


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
