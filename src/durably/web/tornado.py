"""What Tornado's adapter, dashboard and gateway share."""

import inspect
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import tornado.iostream
import tornado.web

from durably.errors import BodyTooLargeError
from durably.web import check_length

from . import ServerResponse, header_pairs


@tornado.web.stream_request_body
class BoundedBodyHandler(tornado.web.RequestHandler):
    """Reads the body up to a limit, and refuses a larger one before the rest arrives.

    A subclass may have the app's own handler class as its second base.
    """

    async def prepare(self) -> None:  # before the body is read
        self._chunks: list[bytes] = []
        self._size = 0
        self._is_refused = False
        if await self._check(lambda: check_length(self.request.headers.get("content-length"), self.check_size)):
            prepared: Any = super().prepare()
            if inspect.isawaitable(prepared):
                await prepared

    async def data_received(self, chunk: bytes) -> None:
        if self._is_refused:
            return
        self._size += len(chunk)
        if await self._check(lambda: self.check_size(self._size)):
            self._chunks.append(chunk)

    @property
    def body(self) -> bytes:
        return b"".join(self._chunks)

    def check_size(self, size: int) -> None:
        """Raises ``BodyTooLargeError``. ``size`` is in bytes."""
        raise NotImplementedError

    def refuse(self, error: BodyTooLargeError) -> ServerResponse:
        """The response to a body that is too large."""
        raise NotImplementedError

    async def _check(self, check: Callable[[], None]) -> bool:
        """Check a size. Returns ``False`` after refusing a body that is too large."""
        try:
            check()
        except BodyTooLargeError as error:
            self._is_refused = True
            self.set_header("connection", "close")
            await write(self, self.refuse(error))
            return False
        return True


def write_head(handler: tornado.web.RequestHandler, response: ServerResponse) -> None:
    handler.set_status(response.status_code)
    for name, value in header_pairs(response):
        if name.lower() == "set-cookie":
            handler.add_header(name, value)
        else:
            handler.set_header(name, value)


async def write(handler: tornado.web.RequestHandler, response: ServerResponse) -> None:
    """Write a response. A disconnected client ends its stream."""
    write_head(handler, response)
    if response.stream is None:
        await handler.finish(response.body or None)
        return
    async with aclosing(response.stream()) as chunks:
        async for chunk in chunks:
            handler.write(chunk)
            try:
                await handler.flush()
            except tornado.iostream.StreamClosedError:
                return
