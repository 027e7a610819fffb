"""The limit of request bodies: its exact place, and the requests that are refused before their bodies are read."""

from collections.abc import AsyncIterator, Iterator

import pytest

from durably.errors import BodyInvalidError, BodyLengthMissingError, BodyTooLargeError
from durably.protocol.limits import MAX_REQUEST_BYTES
from durably.web import check_length, check_size, is_chunked, read_body, read_chunks

HALF = bytes(MAX_REQUEST_BYTES // 2)
LARGEST = [HALF, bytes(MAX_REQUEST_BYTES - len(HALF))]


def reader(chunks: list[bytes]) -> Iterator[bytes]:
    yield from chunks
    yield b""


async def stream(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def test_size_above_the_limit_is_refused() -> None:
    with pytest.raises(BodyTooLargeError):
        check_size(MAX_REQUEST_BYTES + 1)
    with pytest.raises(BodyTooLargeError):
        check_length(str(MAX_REQUEST_BYTES + 1))
    with pytest.raises(BodyTooLargeError):
        check_length("9" * 30)


async def test_body_of_exactly_the_limit_is_read() -> None:
    chunks = reader(LARGEST)
    assert len(read_body(lambda _: next(chunks), None)) == MAX_REQUEST_BYTES
    assert len(await read_chunks(stream(LARGEST), None)) == MAX_REQUEST_BYTES


async def test_body_is_refused_at_the_first_byte_above_the_limit() -> None:
    chunks = reader([*LARGEST, b"x", b"never read"])
    with pytest.raises(BodyTooLargeError):
        read_body(lambda _: next(chunks), None)
    assert next(chunks) == b"never read"
    with pytest.raises(BodyTooLargeError):
        await read_chunks(stream([*LARGEST, b"x"]), None)


async def test_body_that_is_announced_as_too_large_is_not_read() -> None:
    def read(size: int) -> bytes:
        raise AssertionError("the body was read")

    with pytest.raises(BodyTooLargeError):
        read_body(read, str(MAX_REQUEST_BYTES + 1))


async def test_body_that_ends_too_early_is_invalid() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"ab"
        raise ConnectionResetError

    def read(size: int) -> bytes:
        raise ConnectionResetError

    with pytest.raises(BodyInvalidError, match="ConnectionResetError"):
        read_body(read, None)
    with pytest.raises(BodyInvalidError, match="ConnectionResetError"):
        await read_chunks(broken(), None)


def test_body_in_chunks_needs_a_server_that_ends_it() -> None:
    chunked = {"HTTP_TRANSFER_ENCODING": "chunked"}
    assert not is_chunked({"CONTENT_LENGTH": "2", **chunked})
    assert is_chunked({"wsgi.input_terminated": True, **chunked})
    with pytest.raises(BodyLengthMissingError):
        is_chunked(chunked)
