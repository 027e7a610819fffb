"""Requests and responses of Quart."""

from collections.abc import Generator
from typing import Any

import quart
from quart.wrappers.request import Body
from werkzeug.datastructures import Headers

from . import ServerResponse, header_pairs
from .asgi import Receive, Scope, header_items


def request_of(app: quart.Quart, scope: Scope, receive: Receive) -> quart.Request:
    """The app's request, whose body is the next message of ``receive``."""
    request = app.request_class(
        scope["method"],
        scope["scheme"],
        scope["path"],
        scope["query_string"],
        Headers(header_items(scope)),
        scope.get("root_path", ""),
        scope["http_version"],
        scope,  # type: ignore[arg-type]
        send_push_promise=_push_nothing,
    )
    request.body = _Body(receive)
    return request


class _Body(Body):
    def __init__(self, receive: Receive) -> None:
        super().__init__(None, None)
        self._receive = receive

    def __await__(self) -> Generator[Any, None, Any]:
        message = yield from self._receive().__await__()
        return message["body"]


async def _push_nothing(path: str, headers: Headers) -> None:
    """HTTP/2 pushes are for pages."""


def to_response(response: ServerResponse) -> quart.Response:
    content: Any = response.body if response.stream is None else response.stream()
    headers: Any = list(header_pairs(response))
    made = quart.Response(content, response.status_code, headers)
    made.timeout = None  # Streams last longer than the app's ``RESPONSE_TIMEOUT``.
    return made
