"""Platforms that call a function with an event, as WSGI apps for tests and development."""

import base64
import json
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

NAMESPACE = "fn-00000000"
FUNCTION_NAME = f"/{NAMESPACE}/default/app"
PATH = f"/api/v1/web{FUNCTION_NAME}"


@dataclass(frozen=True)
class SimulatedContext:
    """The fields of the platform's context object that name the function."""

    api_host: str
    function_name: str = FUNCTION_NAME


class _Simulator:
    """A WSGI app that calls a function with an event for each request, at every path."""

    def __init__(self, function: Callable[[dict[str, Any], Any], Any]) -> None:
        self._function = function

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        length = _content_length(environ)
        if length is None:
            start_response("400 Bad Request", [("content-length", "0")])
            return [b""]
        body = environ["wsgi.input"].read(length)
        result = self._function(*self._arguments_of(environ, body))
        status, headers, answer = _answer_of(result)
        headers["content-length"] = str(len(answer))
        start_response(f"{status} {HTTPStatus(status).phrase}", [(name, str(value)) for name, value in headers.items()])
        return [answer]

    def _arguments_of(self, environ: dict[str, Any], body: bytes) -> tuple[dict[str, Any], Any]:
        raise NotImplementedError


class DigitalOceanSimulator(_Simulator):
    """Turns HTTP requests into ``main(event, context)`` calls.

    It behaves like the platform with ``web: raw``. It is a WSGI app that answers at every path; ``PATH`` is the
    platform's.
    """

    def _arguments_of(self, environ: dict[str, Any], body: bytes) -> tuple[dict[str, Any], Any]:
        http = {
            "method": environ["REQUEST_METHOD"],
            "path": "",
            "queryString": environ.get("QUERY_STRING", ""),
            "headers": _headers_of(environ),
            **_body_of(body),
        }
        return {"http": http}, SimulatedContext(f"{environ['wsgi.url_scheme']}://{_host_of(environ)}")


class LambdaSimulator(_Simulator):
    """Turns HTTP requests into ``handler(event, context)`` calls.

    The events are those of a function URL, with the payload format 2.0. It is a WSGI app that answers at every path.
    """

    def _arguments_of(self, environ: dict[str, Any], body: bytes) -> tuple[dict[str, Any], Any]:
        path, method = quote(environ["PATH_INFO"], encoding="latin-1"), environ["REQUEST_METHOD"]
        headers = _headers_of(environ) | {"x-forwarded-proto": environ["wsgi.url_scheme"]}
        host = _host_of(environ)
        event = {
            "version": "2.0",
            "routeKey": "$default",
            "rawPath": path,
            "rawQueryString": environ.get("QUERY_STRING", ""),
            "headers": headers,
            "requestContext": {
                "accountId": "anonymous",
                "apiId": "local",
                "domainName": host,
                "domainPrefix": host.partition(".")[0],
                "http": {
                    "method": method,
                    "path": path,
                    "protocol": environ.get("SERVER_PROTOCOL", "HTTP/1.1"),
                    "sourceIp": environ.get("REMOTE_ADDR", ""),
                    "userAgent": headers.get("user-agent", ""),
                },
                "requestId": str(uuid.uuid4()),
                "routeKey": "$default",
                "stage": "$default",
                "timeEpoch": int(time.time() * 1000),
            },
            **_body_of(body),
        }
        return event, None


def _content_length(environ: dict[str, Any]) -> int | None:
    """The body's length; ``None`` if the header is not a number."""
    text = environ.get("CONTENT_LENGTH") or "0"
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _headers_of(environ: dict[str, Any]) -> dict[str, str]:
    return {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")
    }


def _body_of(body: bytes) -> dict[str, Any]:
    try:
        return {"body": body.decode(), "isBase64Encoded": False}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}


def _host_of(environ: dict[str, Any]) -> str:
    return environ.get("HTTP_HOST") or f"{environ['SERVER_NAME']}:{environ['SERVER_PORT']}"


def _answer_of(result: Any) -> tuple[int, dict[str, Any], bytes]:
    """The response for a dictionary with ``body``, ``statusCode`` and ``headers``.

    A body that is not a string becomes JSON.
    """
    if not isinstance(result, dict):
        return HTTPStatus.NO_CONTENT, {}, b""
    body = result.get("body", "")
    encoded = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return int(result.get("statusCode", HTTPStatus.OK)), dict(result.get("headers") or {}), encoded
