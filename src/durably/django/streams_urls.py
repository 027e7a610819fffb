"""The streams for browsers in a Django project."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

import django.db
import django.urls
from django.core.exceptions import PermissionDenied
from django.http import Http404

from durably.browser_streams import StreamRequest, Streams, hide_token
from durably.client import Client
from durably.web import lower_headers
from durably.web.django import SyncAndAsyncView, in_djangos_thread, to_response


def streams(
    client: Client,
    path: str = "streams",
    *,
    authorize: Callable[[Any, str], bool | Awaitable[bool]] | None = None,
    allow_anonymous: bool = False,
    max_listeners: int | None = None,
) -> django.urls.URLPattern:
    """The URL pattern of the streams of runs and other channels for browsers, for ``urlpatterns``.

    The arguments are those of ``durably.starlette.streams``. ``authorize`` gets the request and may use the ORM. Under
    WSGI a stream holds a thread of the server: see ``durably.flask.streams``. Before 5.0, Django under ASGI does not
    notice that a browser has gone away, so its stream lasts until it ends after 15 minutes.
    """
    server = Streams(
        client,
        path,
        authorize=authorize,
        allow_anonymous=allow_anonymous,
        max_listeners=max_listeners,
        caller="durably.django.streams",
        raises=(PermissionDenied, Http404),
    )

    def read(request: Any) -> StreamRequest:
        return StreamRequest(
            method=request.method,
            query=request.META.get("QUERY_STRING", ""),
            headers=lower_headers(request.headers.items()),
            raw_request=request,
            call_blocking=in_djangos_thread,
        )

    def answer(request: Any) -> Any:
        response = server.handle_sync(read(request), request.environ)
        django.db.close_old_connections()  # of this thread, which the stream holds
        return _without_compression(to_response(response))

    async def answer_async(request: Any) -> Any:
        made = read(request)
        response = await server.handle(made)
        request.scope["query_string"] = hide_token(made.query).encode("latin-1")
        return _without_compression(to_response(response))

    view: Any = SyncAndAsyncView(answer, answer_async, csrf_exempt=True)
    return cast(django.urls.URLPattern, django.urls.path(server.path.lstrip("/"), view, name="durably-streams"))


def _without_compression(response: Any) -> Any:
    """``GZipMiddleware`` would keep messages back. It leaves out responses with an encoding."""
    if response.streaming:
        response["content-encoding"] = "identity"
    return response
