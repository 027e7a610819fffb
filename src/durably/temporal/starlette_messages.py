"""Requests, responses and exception handlers of Starlette and FastAPI."""

from collections.abc import Collection
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from durably.errors import BodyInvalidError
from durably.temporal.gateway.problems import EXCEPTIONS, Problem, to_problem, unreadable
from durably.web.starlette import mount_point, read_body, to_response

from .codec_server import CodecServer
from .gateway import Gateway, GatewayRequest


async def answer(
    server: Gateway | CodecServer, request: Request, inner: str, principal: Any, app_parameters: Collection[str] = ()
) -> Response:
    """The server's response. ``inner`` is the path after the mount point."""
    try:
        body, read = await read_body(request, server.check_length)
    except (BodyInvalidError, Problem) as error:
        problem = error if isinstance(error, Problem) else unreadable()
        return to_response(server.refuse(request.method, inner, problem))
    response = await server.handle(
        GatewayRequest(
            method=request.method,
            path=inner,
            mount=mount_point(request, inner),
            headers=request.headers,
            query_params=request.query_params,
            body=body,
            raw_request=read,
            principal=principal,
            call_blocking=run_in_threadpool,
            app_parameters=app_parameters,
        )
    )
    return to_response(response)


def add_exception_handlers(app: Starlette) -> None:
    """Return problems for exceptions of Temporal in the app's own endpoints."""

    async def handle(request: Request, error: Exception) -> Response:
        return to_response(to_problem(error).response())

    for kind in EXCEPTIONS:
        app.add_exception_handler(kind, handle)
