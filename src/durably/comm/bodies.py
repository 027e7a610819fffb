"""Reading request bodies up to a maximum size. All adapters use it, so none buffers more."""

from collections.abc import AsyncIterator, Callable

from durably.errors import BodyTooLargeError
from durably.protocol.limits import MAX_REQUEST_BYTES

_CHUNK_BYTES = 64 * 1024


def check_size(size: int) -> None:
    """Raises ``BodyTooLargeError``."""
    if size > MAX_REQUEST_BYTES:
        raise BodyTooLargeError(f"the request's body is larger than {MAX_REQUEST_BYTES} bytes")


def check_length(content_length: str | None) -> None:
    """Refuse a body by its ``content-length`` header, before any of it is read.

    A header that is not a number is left to the server. Raises ``BodyTooLargeError``.
    """
    text = (content_length or "").strip()
    if text.isascii() and text.isdigit():
        check_size(int(text) if len(text) < 20 else MAX_REQUEST_BYTES + 1)


class LimitedBody:
    """Gathers the chunks of a body. ``add`` raises ``BodyTooLargeError`` at the first byte above the limit."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0

    def add(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > MAX_REQUEST_BYTES:
            self._chunks.clear()
        check_size(self._size)
        self._chunks.append(chunk)

    def all(self) -> bytes:
        return b"".join(self._chunks)


def read_body(read: Callable[[int], bytes], content_length: str | None) -> bytes:
    """Read a whole body by ``read(size)``, which returns no bytes at the end. Raises ``BodyTooLargeError``."""
    check_length(content_length)
    body = LimitedBody()
    while chunk := read(_CHUNK_BYTES):
        body.add(chunk)
    return body.all()


async def read_chunks(chunks: AsyncIterator[bytes], content_length: str | None) -> bytes:
    """Read a whole body from its chunks. Raises ``BodyTooLargeError``."""
    check_length(content_length)
    body = LimitedBody()
    async for chunk in chunks:
        body.add(chunk)
    return body.all()
