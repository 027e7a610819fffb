"""The gateway in a Starlette app, and errors of Temporal."""

from collections.abc import Callable
from typing import Any

try:
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute, Route
except ImportError as error:
    raise ImportError(
        'durably.temporal.starlette needs Starlette: pip install "durably[starlette,temporal]"'
    ) from error

from durably.execution.step import is_async
from durably.web.starlette import ANY_PATH, AnyMethod

from .codec_server import CodecServer
from .gateway import Gateway
from .starlette_messages import add_exception_handlers, answer

__all__ = ["add_exception_handlers", "routes"]


def _user(request: Request) -> Any:
    """The user of Starlette's ``AuthenticationMiddleware``."""
    return request.scope.get("user")


def routes(
    server: Gateway | CodecServer, *, prefix: str = "", principal: Callable[[Request], Any] = _user
) -> list[BaseRoute]:
    """The endpoints of a gateway or a codec server, for ``Starlette(routes=…)`` or a ``Mount``.

    ``principal`` returns the user. It may be async; a plain function runs in a thread. By default it is
    ``request.user`` of ``AuthenticationMiddleware``, if that is installed.
    """

    async def view(request: Request) -> Response:
        who = None if request.method == "OPTIONS" else await _call(principal, request)
        return await answer(server, request, f"/{request.path_params['path']}", who)

    return [Route(f"{prefix}/{ANY_PATH}", AnyMethod(view))]


async def _call(function: Callable[[Request], Any], request: Request) -> Any:
    if is_async(function):
        return await function(request)
    return await run_in_threadpool(function, request)
