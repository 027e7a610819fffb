"""Serving functions as a DigitalOcean Function (with ``web: raw``)."""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qs, urljoin

from durably.comm.serve_options import Mount, check_mount, mounts_of
from durably.functions.function import Function
from durably.web import check_size

from .client import Client
from .comm import CommHandler, CommRequest, CommResponse
from .errors import BodyInvalidError, BodyTooLargeError, FunctionConfigInvalidError
from .settings import Streaming

FRAMEWORK = "digitalocean"

_WEB_PREFIX = "/api/v1/web"
"""The path before the function's name. DigitalOcean passes only the path below the function."""


class FunctionContext(Protocol):
    """The fields of the platform's context object that are used."""

    api_host: str
    """For example ``https://faas-nyc1-2ef2e6cc.doserverless.co``."""
    function_name: str
    """For example ``/fn-b094417f/sample/hello``."""


Main = Callable[[dict[str, Any], Any], dict[str, Any]]


def serve(
    client: Client,
    functions: Sequence[Function[Any]],
    *,
    enable_unauthed_sync: bool | None = None,
    public_path: str | None = None,
    serve_origin: str | None = None,
    serve_path: str | None = None,
) -> Main:
    """The ``main(event, context)`` of a DigitalOcean Function that answers engines.

    The arguments are those of ``durably.fast_api.serve``. There is no streaming, because the platform buffers answers.
    Async functions run on a background event loop.
    """
    if client.in_process is not None:
        raise FunctionConfigInvalidError(
            "Client.engine cannot be used in DigitalOcean Functions, whose processes do not outlive a request: leave "
            "it out, and have an engine elsewhere call this function"
        )
    mounts, path = mounts_of(client), serve_path or "/"
    check_mount(mounts, path, client, functions)
    handler = CommHandler(
        client=client,
        framework=FRAMEWORK,
        functions=functions,
        streaming=Streaming.DISABLE,
        enable_unauthed_sync=enable_unauthed_sync,
        serve_origin=serve_origin,
        serve_path=serve_path,
        public_path=public_path,
    )
    mounts[path] = Mount(handler)

    def main(event: dict[str, Any], context: FunctionContext) -> dict[str, Any]:
        try:
            http = _http_of(event)
            body = _body_of(http)
        except (BodyInvalidError, BodyTooLargeError) as error:
            return _to_result(handler.refuse(error))
        request = CommRequest(
            body=body,
            headers=http["headers"],
            query_params=parse_qs(http["queryString"]),
            raw_request={"event": event, "context": context},
            request_url=lambda: urljoin(context.api_host, _WEB_PREFIX + context.function_name),
            has_trusted_url=True,
        )
        return _to_result(handler.handle_sync(str(http.get("method", "")), request))

    return main


def _http_of(event: Mapping[str, Any]) -> Mapping[str, Any]:
    http = event.get("http")
    if not isinstance(http, dict):
        raise BodyInvalidError('the event has no "http"; is the function a web function?')
    for key, kind in (("headers", dict), ("queryString", str)):
        if not isinstance(http.get(key), kind):
            raise BodyInvalidError(f'the event has no "http.{key}"; set "web: raw" in project.yml')
    return http


def _body_of(http: Mapping[str, Any]) -> bytes:
    body = http.get("body") or ""
    try:
        check_size(len(body) * 3 // 4 if http.get("isBase64Encoded") else len(body))
        return base64.b64decode(body, validate=True) if http.get("isBase64Encoded") else body.encode()
    except (binascii.Error, ValueError, AttributeError, TypeError):
        raise BodyInvalidError('the event\'s "http.body" cannot be decoded') from None


def _to_result(response: CommResponse) -> dict[str, Any]:
    """The result, with the body as a string.

    The platform would re-encode an object, which breaks the signature.
    """
    return {
        "statusCode": int(response.status_code),
        "headers": response.headers,
        "body": response.body.decode(),
    }
