"""The gateway in a Starlette app, and errors of Temporal."""

from collections.abc import Awaitable, Callable
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
from durably.temporal.gateway.messages import RequestHandler
from durably.web.starlette import ANY_PATH, AnyMethod, mount_point, to_response

from .codec_server import CodecServer
from .gateway import Gateway
from .starlette_messages import add_exception_handlers, answer

__all__ = ["add_exception_handlers", "codec_routes", "routes"]


def _user(request: Request) -> Any:
    """The user of Starlette's ``AuthenticationMiddleware``."""
    return request.scope.get("user")


def routes(
    gateway: Gateway,
    *,
    prefix: str = "",
    principal: Callable[[Request], Any] = _user,
    title: str = "Workflows",
    docs: bool | str = False,
) -> list[BaseRoute]:
    """The gateway's endpoints, for ``Starlette(routes=…)`` or a ``Mount``.

    Their OpenAPI document is at ``openapi.json``.

    - ``principal``: returns the user. It may be async; a plain function runs in a thread. By default it is
      ``request.user`` of ``AuthenticationMiddleware``, if that is installed.
    - ``docs=True``: adds a page with Swagger UI at ``docs``, with its code from a CDN. It may be the URL of the app's
      own copy of the npm package ``swagger-ui-dist``.
    """

    async def document(request: Request) -> Response:
        mount = mount_point(request, "/openapi.json")
        return to_response(gateway.answer_document(request.method, mount=mount, title=title))

    async def docs_page(request: Request) -> Response:
        return to_response(gateway.answer_docs(request.method, title=title, docs=docs))

    return [
        *([Route(f"{prefix}/docs", AnyMethod(docs_page))] if docs else []),
        Route(f"{prefix}/openapi.json", AnyMethod(document)),
        Route(f"{prefix}/{ANY_PATH}", AnyMethod(_view(gateway, principal))),
    ]


def codec_routes(
    server: CodecServer, *, prefix: str = "", principal: Callable[[Request], Any] = _user
) -> list[BaseRoute]:
    """A codec server for Temporal's web UI and CLI: ``/encode`` and ``/decode``.

    ``principal`` is as for ``routes``. Preflight requests have none. Raises ``TemporalSettingsError`` for a connection
    without a codec.
    """
    server.check()
    return [Route(f"{prefix}/{ANY_PATH}", AnyMethod(_view(server, principal)))]


def _view(server: RequestHandler, principal: Callable[[Request], Any]) -> Callable[[Request], Awaitable[Response]]:
    async def view(request: Request) -> Response:
        who = None if request.method == "OPTIONS" else await _call(principal, request)
        return await answer(server, request, f"/{request.path_params['path']}", who)

    return view


async def _call(function: Callable[[Request], Any], request: Request) -> Any:
    if is_async(function):
        return await function(request)
    return await run_in_threadpool(function, request)
