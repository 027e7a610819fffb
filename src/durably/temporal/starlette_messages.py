"""Requests and responses of Starlette and FastAPI: bodies, mount points, exception handlers."""

from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from durably.temporal.gateway.messages import RequestHandler
from durably.temporal.gateway.problems import EXCEPTIONS, Problem, to_problem

from .gateway import GatewayRequest, GatewayResponse


async def answer(server: RequestHandler, request: Request, inner: str, principal: Any) -> Response:
    """``inner`` is the path after the mount point."""
    try:
        made = await to_request(server, request, inner, principal)
    except Problem as problem:
        return to_response(server.refuse(request.method, inner, problem))
    return to_response(await server.handle(made))


async def to_request(server: RequestHandler, request: Request, inner: str, principal: Any) -> GatewayRequest:
    """``inner`` is the path after the mount point. Raises ``Problem`` for a body that is too large."""
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


def to_response(response: GatewayResponse) -> Response:
    if response.stream is not None:
        return StreamingResponse(response.stream(), response.status_code, response.headers)
    return Response(response.body, response.status_code, response.headers)


def path_in_app(request: Request) -> str:
    """The path after the place at which the whole app is mounted."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


def mount_point(request: Request, inner: str) -> str:
    root: str = request.scope.get("root_path", "")
    return root + path_in_app(request).removesuffix(inner).rstrip("/")


def add_exception_handlers(app: Starlette) -> None:
    """Answer what ``temporalio`` and the connection raise in the app's own endpoints as problem documents."""

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
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        server.check_length(len(body))
    messages: list[Mapping[str, Any]] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else await request.receive()

    return type(request)(request.scope, receive), bytes(body)
