"""Requests, responses and exception handlers of Starlette and FastAPI."""

from collections.abc import Collection, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from durably.errors import BodyInvalidError
from durably.io.bodies import read_chunks
from durably.temporal.gateway.messages import RequestHandler
from durably.temporal.gateway.problems import EXCEPTIONS, Problem, to_problem, unreadable

from .gateway import GatewayRequest, GatewayResponse


async def answer(
    server: RequestHandler, request: Request, inner: str, principal: Any, app_parameters: Collection[str] = ()
) -> Response:
    """The server's response. ``inner`` is the path after the mount point."""
    try:
        made = await to_request(server, request, principal, inner=inner)
    except Problem as problem:
        return to_response(server.refuse(request.method, inner, problem))
    made.app_parameters = app_parameters
    return to_response(await server.handle(made))


async def to_request(
    server: RequestHandler, request: Request, principal: Any, *, inner: str = "", segments: int = 0
) -> GatewayRequest:
    """A request of the gateway. Raises a problem for a large or incomplete body.

    The path after the mount point is ``inner``, or the last ``segments`` of the path.
    """
    if segments:
        inner = "/" + "/".join(request.scope["path"].rstrip("/").split("/")[-segments:])
    length = request.headers.get("content-length", "")
    if length.isdecimal():
        server.check_length(int(length))
        read, body = request, await request.body()
    else:
        try:
            body = await read_chunks(request.stream(), None, ClientDisconnect, server.check_length)
        except BodyInvalidError as error:
            raise unreadable() from error
        read = _replay(request, body)
    return GatewayRequest(
        method=request.method,
        path=inner,
        mount=mount_point(request, inner),
        headers=request.headers,
        query_params=request.query_params,
        body=body,
        raw_request=read,
        principal=principal,
        call_blocking=run_in_threadpool,
    )


def mount_point(request: Request, inner: str) -> str:
    """The path before ``inner``."""
    root: str = request.scope.get("root_path", "")
    path: str = request.scope["path"].removeprefix(root).rstrip("/")
    return root + path.removesuffix(inner.rstrip("/"))


def to_response(response: GatewayResponse) -> Response:
    if response.stream is not None:
        return StreamingResponse(response.stream(), response.status_code, response.headers)
    return Response(response.body, response.status_code, response.headers)


def add_exception_handlers(app: Starlette) -> None:
    """Return problems for exceptions of Temporal in the app's own endpoints."""

    async def handle(request: Request, error: Exception) -> Response:
        return to_response(to_problem(error).response())

    for kind in EXCEPTIONS:
        app.add_exception_handler(kind, handle)


def _replay(request: Request, body: bytes) -> Request:
    """A request whose body ``authorize`` can read again."""
    messages: list[Mapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else await request.receive()

    return type(request)(request.scope, receive)
