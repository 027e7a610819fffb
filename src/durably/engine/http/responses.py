"""Responses in JSON: plain, wrapped as ``/v1`` wraps them, and errors."""

import datetime as dt
from typing import Any

import msgspec
from aiohttp import web

from durably.protocol.api import Envelope, ErrorBody, Metadata

_encoder = msgspec.json.Encoder()


class ApiError(Exception):
    """Ends a request with ``status`` and an error body. ``message`` is shown to the client: no secrets."""

    def __init__(self, status: int, message: str, *, code: str | None = None, data: Any = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.data = status, message, code, data


def json_response(body: Any, status: int = 200) -> web.Response:
    return raw_response(_encoder.encode(body), status)


def raw_response(body: bytes, status: int = 200) -> web.Response:
    """JSON that is encoded already."""
    return web.Response(body=body, status=status, content_type="application/json")


def data_response(data: Any) -> web.Response:
    return json_response(Envelope(data=data, metadata=Metadata(fetched_at=dt.datetime.now(dt.UTC))))


def error_response(status: int, message: str, *, code: str | None = None, data: Any = None) -> web.Response:
    # What a message quotes of a request may hold bytes that are no UTF-8, as surrogates, which JSON cannot.
    text = message.encode(errors="replace").decode()
    return json_response(ErrorBody(error=text, status=status, code=code, data=data), status)
