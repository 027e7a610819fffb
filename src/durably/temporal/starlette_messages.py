"""Requests and responses of Starlette and FastAPI: bodies, mount points, exception handlers."""

from collections.abc import Collection, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from durably.io.bodies import read_chunks
from durably.temporal.gateway.messages import RequestHandler
from durably.temporal.gateway.problems import EXCEPTIONS, Problem, to_problem

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
    """A request of the gateway. Raises ``Problem`` for a body that is too large.

    The path after the mount point is ``inner``, or the last ``segments`` of the path.
    """
    if segments:
        inner = "/" + "/".join(request.scope["path"].rstrip("/").split("/")[-segments:])
    read, body = await _read_body(server, request)
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
    """Answer exceptions of ``temporalio`` and of the connection in the app's own endpoints with problem documents."""

    async def handle(request: Request, error: Exception) -> Response:
        return to_response(to_problem(error).response())

    for kind in EXCEPTIONS:
        app.add_exception_handler(kind, handle)


async def _read_body(server: RequestHandler, request: Request) -> tuple[Request, bytes]:
    """The body, and a request from which ``authorize`` can read it again."""
    length = request.headers.get("content-length", "")
    if length.isdecimal():
        server.check_length(int(length))
        return request, await request.body()
    body = await read_chunks(request.stream(), None, check=server.check_length)
    messages: list[Mapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else await request.receive()

    return type(request)(request.scope, receive), body
