"""What the adapters, dashboards and gateways of Starlette and FastAPI share."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from durably.web import read_chunks

from . import ServerResponse


class _AnyPath(Convertor[str]):
    """Matches any path, also with line feeds, so that the server reports errors in it."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("durably_any_path", _AnyPath())
ANY_PATH = "{path:durably_any_path}"
"""The part of a route's path that matches everything below a mount point."""


def path_of(regex: str) -> str:
    """A route's path below the root, which matches an expression."""

    class Matching(_AnyPath): ...

    Matching.regex = regex
    name = f"durably_path_{hashlib.sha256(regex.encode()).hexdigest()[:16]}"
    register_url_convertor(name, Matching())
    return f"/{{path:{name}}}"


class AnyMethod:
    """An ASGI app for all methods. Starlette restricts the methods of functions."""

    def __init__(self, view: Callable[[Request], Awaitable[Response]]) -> None:
        self._view = view

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._view(Request(scope, receive, send))
        await response(scope, receive, send)


async def read_body(request: Request, check: Callable[[int], None]) -> tuple[bytes, Request]:
    """The body, and the request for the app's own code, which can read the body again.

    ``check`` raises an error for a size in bytes that is too large. Raises ``BodyInvalidError``.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal():
        check(int(length))
        return await request.body(), request
    body = await read_chunks(request.stream(), None, ClientDisconnect, check)
    return body, _replay(request, body)


def _replay(request: Request, body: bytes) -> Request:
    messages: list[Mapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else await request.receive()

    return type(request)(request.scope, receive)


def mount_point(request: Request, inner: str) -> str:
    """The path before ``inner``, which is the path after the mount point."""
    root: str = request.scope.get("root_path", "")
    path: str = request.scope["path"].removeprefix(root).rstrip("/")
    return root + path.removesuffix(inner.rstrip("/"))


def to_response(response: ServerResponse) -> Response:
    made = (
        Response(response.body, response.status_code)
        if response.stream is None
        else StreamingResponse(response.stream(), response.status_code)
    )
    headers: Any = response.headers
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        if name.lower() == "set-cookie":
            made.headers.append(name, value)
        else:
            made.headers[name] = value
    return made
