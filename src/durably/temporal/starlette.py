"""The gateway in a Starlette app, and errors of Temporal. FastAPI's adapter uses it too."""

from collections.abc import Callable, Collection
from typing import Any

try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute, Route
except ImportError as error:
    raise ImportError(
        'durably.temporal.starlette needs Starlette: pip install "durably[starlette,temporal]"'
    ) from error

from durably.errors import BodyInvalidError
from durably.execution.step import is_async
from durably.temporal.gateway.problems import EXCEPTIONS, Problem, to_problem, unreadable
from durably.web.starlette import ANY_PATH, AnyMethod, mount_point, read_body, to_response

from .gateway import Gateway, GatewayRequest


async def answer(
    server: Gateway, request: Request, inner: str, principal: Any, app_parameters: Collection[str] = ()
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


def routes(
    server: Gateway,
    *,
    prefix: str = "",
    principal: Callable[[Request], Any] | None = None,
) -> list[BaseRoute]:
    """The endpoints of a gateway, for ``Starlette(routes=…)`` or a ``Mount``.

    ``principal`` returns the user. It may be async; a plain function runs in a thread. By default it is
    ``request.user`` of ``AuthenticationMiddleware``, if that is installed.
    """

    async def view(request: Request) -> Response:
        if request.method == "OPTIONS":
            who = None
        elif principal is None:
            who = request.scope.get("user")
        else:
            who = await (principal(request) if is_async(principal) else run_in_threadpool(principal, request))
        return await answer(server, request, f"/{request.path_params['path']}", who)

    return [Route(f"{prefix}/{ANY_PATH}", AnyMethod(view))]
