"""Serving functions in a FastAPI app."""

from collections.abc import Sequence
from typing import Any, Unpack

try:
    import fastapi
    import fastapi.params
except ImportError as error:
    raise ImportError('durably.fast_api needs FastAPI: pip install "durably[fast-api]"') from error

from durably.comm.serve_options import DurableEndpointOptions, ServeOptions
from durably.functions.function import Function
from durably.web import UNREADABLE, lower_headers, read_query
from durably.web.starlette import read_body, to_response

from .browser_streams import hide_token
from .client import Client
from .comm import CommRequest
from .endpoints import mount_endpoint
from .starlette import dashboard as dashboard
from .starlette import serve_as
from .starlette import streams as streams
from .starlette import webhook as webhook

FRAMEWORK = "fast_api"


def serve(
    app: fastapi.FastAPI, client: Client, functions: Sequence[Function[Any]], **options: Unpack[ServeOptions]
) -> None:
    """Add the endpoint that engines call, by default at ``/api/inngest``.

    The options are those of ``durably.starlette.serve``.
    """
    serve_as(FRAMEWORK, app, client, functions, options)


def endpoint(
    app: fastapi.FastAPI | fastapi.APIRouter,
    function: Function[Any],
    path: str,
    *,
    dependencies: Sequence[fastapi.params.Depends] = (),
    **options: Unpack[DurableEndpointOptions],
) -> None:
    """Add a durable endpoint of a function at ``path``, also of a router.

    See ``durably.starlette.endpoint``. The dependencies of the app and of the router apply, and ``dependencies``, with
    which neither ``authorize`` nor ``allow_anonymous`` is needed. They apply to links too.
    """
    if dependencies and "authorize" not in options:
        options["allow_anonymous"] = True
    mount = mount_endpoint(function, path, "durably.fast_api.endpoint", **options)

    async def answer(request: fastapi.Request) -> fastapi.Response:
        try:
            body, read = await read_body(request, mount.check_size)
        except UNREADABLE as error:
            return to_response(mount.handler.refuse(error))
        query = request.scope["query_string"].decode("latin-1")
        made = CommRequest(
            body=body,
            headers=lower_headers(request.headers.items()),
            query_params=read_query(query),
            raw_request=read,
            request_url=lambda: str(request.url),
            has_lower_names=True,
        )
        response = await mount.handler.handle(request.method, made)
        request.scope["query_string"] = hide_token(query).encode("latin-1")  # before the server logs it
        return to_response(response)

    app.add_api_route(mount.path, answer, methods=["GET", "POST"], dependencies=dependencies, include_in_schema=False)
