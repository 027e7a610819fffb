"""Serving functions as a DigitalOcean Function (with ``web: raw``)."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol, Unpack
from urllib.parse import parse_qs, urljoin

from durably.comm.events import (
    EventHandler,
    decode_body,
    handle_events,
    make_event_handler,
    refuse_engine_in_process,
    refuse_streams,
)
from durably.comm.serve_options import DurableEndpointOptions, EndpointOptions
from durably.functions.function import Function

from .client import Client
from .comm import CommRequest
from .endpoints import mount_endpoint
from .errors import BodyInvalidError
from .webhooks import Source, mount_webhook

FRAMEWORK = "digitalocean"
PLATFORM = "DigitalOcean Functions"

_WEB_PREFIX = "/api/v1/web"
"""The path before the function's name. DigitalOcean passes only the path below the function."""


class FunctionContext(Protocol):
    """The fields of the platform's context object that are used."""

    api_host: str
    """For example ``https://faas-nyc1-2ef2e6cc.doserverless.co``."""
    function_name: str
    """For example ``/fn-b094417f/sample/hello``."""


def serve(client: Client, functions: Sequence[Function[Any]], **options: Unpack[EndpointOptions]) -> EventHandler:
    """The ``main(event, context)`` of a DigitalOcean Function that answers engines.

    The options are those of ``durably.starlette.serve``. There is no streaming, because the platform buffers answers.
    Async functions run on a background event loop.
    """
    return make_event_handler(FRAMEWORK, PLATFORM, client, functions, options, _read)


def webhook(client: Client, source: Source) -> EventHandler:
    """The ``main(event, context)`` of a function that receives the webhooks of a source, at every path.

    See ``durably.starlette.webhook``. The engine is elsewhere.
    """
    refuse_engine_in_process(client, PLATFORM)
    return handle_events(mount_webhook(client, source, None, "durably.digital_ocean.webhook"), _read)


def endpoint(function: Function[Any], **options: Unpack[DurableEndpointOptions]) -> EventHandler:
    """The ``main(event, context)`` of a durable endpoint of a function, at every path.

    See ``durably.starlette.endpoint``. The engine is elsewhere.
    """
    mount = mount_endpoint(function, "/", "durably.digital_ocean.endpoint", **options)
    refuse_engine_in_process(function.client, PLATFORM)
    return handle_events(mount, _read)


def streams(client: Client, **options: Any) -> NoReturn:
    """Raises ``NotSupportedError``: the platform buffers answers, so it cannot stream."""
    refuse_streams(PLATFORM)


def _read(event: dict[str, Any], context: FunctionContext) -> tuple[str, CommRequest]:
    http = _http_of(event)
    request = CommRequest(
        body=decode_body(http.get("body"), is_base64=bool(http.get("isBase64Encoded")), name="http.body"),
        headers=http["headers"],
        query_params=parse_qs(http["queryString"]),
        raw_request={"event": event, "context": context},
        request_url=lambda: urljoin(context.api_host, _WEB_PREFIX + context.function_name),
        has_trusted_url=True,
    )
    return str(http.get("method", "")), request


def _http_of(event: Mapping[str, Any]) -> Mapping[str, Any]:
    http = event.get("http")
    if not isinstance(http, dict):
        raise BodyInvalidError('the event has no "http"; is the function a web function?')
    for key, kind in (("headers", dict), ("queryString", str)):
        if not isinstance(http.get(key), kind):
            raise BodyInvalidError(f'the event has no "http.{key}"; set "web: raw" in project.yml')
    return http
