"""Requests and responses of ASGI, for its frameworks and for apps without one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

from . import ServerResponse, check_size, header_pairs, read_chunks

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]
"""Frameworks have types of their own for the arguments, which are those above."""


def header_items(scope: Scope) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]


async def read_body(
    receive: Receive, content_length: str | None, check: Callable[[int], None] = check_size
) -> tuple[bytes, Receive]:
    """The body, and the ``receive`` with which the app's own code can read it again.

    ``check`` raises an error for a size in bytes that is too large. Raises ``BodyInvalidError``.
    """
    body = await read_chunks(_chunks(receive), content_length, check=check)
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return body, receive_again


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    while (message := await receive())["type"] == "http.request":
        if chunk := message.get("body"):
            yield chunk
        if not message.get("more_body"):
            return
    raise ConnectionResetError


def url_of(scope: Scope, headers: dict[str, str]) -> str:
    """The URL without its query, by the ``Host`` header."""
    host = headers.get("host")
    if host is None:
        address, port = scope.get("server") or ("localhost", None)
        host = f"{address}:{port}" if port else address
    return f"{scope.get('scheme', 'http')}://{host}{quote(scope['path'], safe='/:@!$&()*+,;=~')}"


def app_path(scope: Scope) -> str:
    """The path within the app. Servers differ in whether the path of a request has the root's."""
    root: str = scope.get("root_path", "")
    path: str = scope["path"]
    return path[len(root) :] if path.startswith(f"{root}/") else path


async def send_response(response: ServerResponse, receive: Receive, send: Send) -> None:
    """Send a response. A disconnected client ends its stream."""
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in header_pairs(response)]
    if response.stream is None:
        headers.append((b"content-length", b"%d" % len(response.body)))
        await send({"type": "http.response.start", "status": int(response.status_code), "headers": headers})
        await send({"type": "http.response.body", "body": response.body})
        return
    stream = response.stream

    async def write() -> None:
        await send({"type": "http.response.start", "status": int(response.status_code), "headers": headers})
        async with aclosing(stream()) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    writing, watching = asyncio.create_task(write()), asyncio.create_task(watch())
    try:
        await asyncio.wait({writing, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watching.cancel()
        writing.cancel()  # does nothing if it has ended
        results = await asyncio.gather(writing, watching, return_exceptions=True)
    if isinstance(error := results[0], Exception) and not isinstance(error, OSError):  # OSError: disconnected
        raise error
