"""Request bodies, query parameters and headers: limits, and errors that name the place."""

import asyncio
import datetime as dt
import re
import zlib
from collections.abc import Callable
from typing import TypeVar

import msgspec
from aiohttp import hdrs, web

from durably.protocol.decoding import NotUtf8Error, TooDeepError
from durably.protocol.durations import parse_rfc3339
from durably.protocol.limits import MAX_REQUEST_BYTES

from .responses import ApiError

T = TypeVar("T")
_BYTE = re.compile(r"^(?:JSON is malformed: )?(.*) \(byte (\d+)\)$")


_GRACE_SECONDS = 30.0
_LEAST_BYTES_PER_SECOND = 16 * 1024
"""A body may take ``_GRACE_SECONDS``, or longer if it comes at this rate."""


_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
"""zlib's ``wbits`` to recognise either format by its header."""


async def read_body(request: web.Request) -> bytes:
    """The whole body, unpacked.

    Call it once a request is known to be allowed: a few bytes may unpack to ``MAX_REQUEST_BYTES``.
    Raises ``ApiError``: 413 above ``MAX_REQUEST_BYTES``, 408 if it comes too slowly, 415 for an encoding other than
    gzip and deflate, 400 if it does not fit its headers.
    """
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
    if encoding not in ("identity", "gzip", "deflate", ""):
        raise ApiError(415, f"the content-encoding {encoding!r} is unknown; send the body as it is, or with gzip")
    body = await _read_bytes(request)
    return body if encoding in ("identity", "") else await asyncio.to_thread(_unpack, body)


def _unpack(body: bytes) -> bytes:
    """Raises ``ApiError``: 413 above ``MAX_REQUEST_BYTES``, 400 if the body is not of this encoding."""
    unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        unpacked = unpacker.decompress(body, MAX_REQUEST_BYTES + 1)
    except zlib.error:
        unpacked = b""
    if len(unpacked) > MAX_REQUEST_BYTES:
        raise ApiError(413, f"the body is larger than {MAX_REQUEST_BYTES} bytes when it is unpacked")
    if not unpacker.eof or unpacker.unused_data:
        raise ApiError(400, "the body cannot be unpacked: it does not fit its content-encoding")
    return unpacked


async def _read_bytes(request: web.Request) -> bytes:
    """The body as it is sent. Raises ``ApiError``."""
    if (request.content_length or 0) > MAX_REQUEST_BYTES:
        raise ApiError(413, f"the body is larger than {MAX_REQUEST_BYTES} bytes")
    body = bytearray()
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(began + _GRACE_SECONDS) as limit:
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > MAX_REQUEST_BYTES:
                    raise ApiError(413, f"the body is larger than {MAX_REQUEST_BYTES} bytes")
                limit.reschedule(began + _GRACE_SECONDS + len(body) / _LEAST_BYTES_PER_SECOND)
        return bytes(body)
    except TimeoutError:
        raise ApiError(
            408, f"the body comes too slowly: {len(body)} bytes in {_GRACE_SECONDS:g} s and more; send it again"
        ) from None
    except ConnectionResetError:
        raise ApiError(400, "the client closed the connection before the end of the body") from None
    except web.RequestPayloadError:
        raise ApiError(400, "the body cannot be read: it does not fit its length") from None


async def read_json(request: web.Request, decoder: msgspec.json.Decoder[T]) -> T:
    return decode_json(await read_body(request), decoder.decode)


def decode_json(body: bytes, decode: Callable[[bytes], T]) -> T:
    """Raises ``ApiError`` 400 that names line and column of malformed JSON, or the path of a wrong value."""
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        raise ApiError(400, f"the body has the wrong shape: {error}") from None
    except (NotUtf8Error, UnicodeDecodeError):
        raise ApiError(400, "the body is not valid JSON: it is not encoded in UTF-8") from None
    except (TooDeepError, RecursionError):
        raise ApiError(400, "the body is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise ApiError(400, describe_malformed(body, str(error))) from None


def describe_malformed(body: bytes, fault: str) -> str:
    """``fault`` is msgspec's message, which counts bytes; people count lines and columns, from 1."""
    if not body.strip():
        return "the body is empty; send JSON"
    if found := _BYTE.match(fault):
        reason, offset = found[1], int(found[2])
    else:
        reason, offset = "it ends too early", len(body)
    before = body[:offset].decode(errors="replace")
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    return f"the body is not valid JSON: {reason} at line {line}, column {column}"


def moment_parameter(request: web.Request, name: str) -> dt.datetime | None:
    text = request.query.get(name)
    if not text:
        return None
    # In a query string, an unescaped "+" of an offset arrives as a space.
    if moment := parse_rfc3339(text.replace(" ", "+")):
        return moment
    raise ApiError(400, f"{name} must be an RFC 3339 moment like 2026-01-31T12:00:00Z, not {text!r}")


def limit_parameter(request: web.Request, *, default: int, most: int) -> int:
    text = request.query.get("limit")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise ApiError(400, f"limit must be a whole number from 1 to {most}, not {text!r}")
    return int(text)


def header_parameter(request: web.Request, name: str) -> str | None:
    """A request header, if there is one. Raises ``ApiError`` 400 if it is not UTF-8."""
    value = request.headers.get(name)
    if value is not None and any("\ud800" <= each <= "\udfff" for each in value):
        raise ApiError(400, f"the header {name} is not encoded in UTF-8")
    return value


def id_suffix_parameter(request: web.Request) -> str | None:
    """Ids are upper-case letters and digits, so a LIKE pattern's special characters are refused."""
    text = request.query.get("id_suffix", "").upper()
    if text and not (text.isascii() and text.isalnum()):
        raise ApiError(400, f"id_suffix must be the last letters and digits of an id, not {text!r}")
    return text or None
