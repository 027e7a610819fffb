"""Query parameters and headers, checked: a bad one is a 400 that names it."""

import datetime as dt

from aiohttp import web

from durably.protocol.durations import parse_rfc3339

from .responses import ApiError


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
