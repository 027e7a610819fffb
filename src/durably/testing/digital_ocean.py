"""The runtime of DigitalOcean Functions as a WSGI app, for tests and development."""

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

NAMESPACE = "fn-00000000"
FUNCTION_NAME = f"/{NAMESPACE}/default/app"
PATH = f"/api/v1/web{FUNCTION_NAME}"


@dataclass(frozen=True)
class SimulatedContext:
    """The fields of the platform's context object that name the function."""

    api_host: str
    function_name: str = FUNCTION_NAME


class DigitalOceanSimulator:
    """Turns HTTP requests into ``main(event, context)`` calls.

    It behaves like the platform with ``web: raw``. It is a WSGI app that answers at every path; ``PATH`` is the
    platform's.
    """

    def __init__(self, main: Callable[[dict[str, Any], Any], Any]) -> None:
        self._main = main

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        length = _content_length(environ)
        if length is None:
            start_response("400 Bad Request", [("content-length", "0")])
            return [b""]
        body = environ["wsgi.input"].read(length)
        result = self._main(_event_of(environ, body), SimulatedContext(_origin_of(environ)))
        status, headers, answer = _answer_of(result)
        headers["content-length"] = str(len(answer))
        start_response(f"{status} {HTTPStatus(status).phrase}", [(name, str(value)) for name, value in headers.items()])
        return [answer]


def _content_length(environ: dict[str, Any]) -> int | None:
    """The body's length; ``None`` if the header is not a number."""
    text = environ.get("CONTENT_LENGTH") or "0"
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _event_of(environ: dict[str, Any], raw: bytes) -> dict[str, Any]:
    try:
        body, is_base64 = raw.decode(), False
    except UnicodeDecodeError:
        body, is_base64 = base64.b64encode(raw).decode(), True
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")
    }
    return {
        "http": {
            "method": environ["REQUEST_METHOD"],
            "path": "",
            "queryString": environ.get("QUERY_STRING", ""),
            "headers": headers,
            "body": body,
            "isBase64Encoded": is_base64,
        }
    }


def _origin_of(environ: dict[str, Any]) -> str:
    host = environ.get("HTTP_HOST") or f"{environ['SERVER_NAME']}:{environ['SERVER_PORT']}"
    return f"{environ['wsgi.url_scheme']}://{host}"


def _answer_of(result: Any) -> tuple[int, dict[str, Any], bytes]:
    """The response for a dictionary with ``body``, ``statusCode`` and ``headers``.

    A body that is not a string becomes JSON.
    """
    if not isinstance(result, dict):
        return HTTPStatus.NO_CONTENT, {}, b""
    body = result.get("body", "")
    encoded = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return int(result.get("statusCode", HTTPStatus.OK)), dict(result.get("headers") or {}), encoded
