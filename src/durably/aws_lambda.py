"""Serving functions as an AWS Lambda function, behind a function URL or an HTTP API of API Gateway."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Unpack
from urllib.parse import parse_qs

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

FRAMEWORK = "aws-lambda"
PLATFORM = "AWS Lambda"


def serve(client: Client, functions: Sequence[Function[Any]], **options: Unpack[EndpointOptions]) -> EventHandler:
    """The ``handler(event, context)`` of a Lambda function that answers engines, at every path.

    Events have the payload format 2.0, which is that of function URLs and the default of HTTP APIs. The options are
    those of ``durably.starlette.serve``. There is no streaming, because Lambda buffers the answers of Python functions.
    Async functions run on a background event loop.
    """
    return make_event_handler(FRAMEWORK, PLATFORM, client, functions, options, _read)


def webhook(client: Client, source: Source) -> EventHandler:
    """The ``handler(event, context)`` of a function that receives the webhooks of a source, at every path.

    See ``durably.starlette.webhook``. The engine is elsewhere.
    """
    refuse_engine_in_process(client, PLATFORM)
    return handle_events(mount_webhook(client, source, None, "durably.aws_lambda.webhook"), _read)


def endpoint(function: Function[Any], **options: Unpack[DurableEndpointOptions]) -> EventHandler:
    """The ``handler(event, context)`` of a durable endpoint of a function, at every path.

    See ``durably.starlette.endpoint``. The engine is elsewhere.
    """
    mount = mount_endpoint(function, "/", "durably.aws_lambda.endpoint", **options)
    refuse_engine_in_process(function.client, PLATFORM)
    return handle_events(mount, _read)


def streams(client: Client, **options: Any) -> NoReturn:
    """Raises ``NotSupportedError``: the platform buffers the answers of Python functions, so it cannot stream."""
    refuse_streams(PLATFORM)


def _read(event: dict[str, Any], context: object) -> tuple[str, CommRequest]:
    platform, headers = _request_context_of(event), event.get("headers") or {}
    scheme = headers.get("x-forwarded-proto", "https")  # The platform sets it.
    request = CommRequest(
        body=decode_body(event.get("body"), is_base64=bool(event.get("isBase64Encoded")), name="body"),
        headers=headers,
        query_params=parse_qs(event.get("rawQueryString") or ""),
        raw_request={"event": event, "context": context},
        request_url=lambda: f"{scheme}://{platform['domainName']}{event.get('rawPath', '')}",
        has_trusted_url=True,
    )
    return str(platform["http"].get("method", "")), request


def _request_context_of(event: Any) -> Mapping[str, Any]:
    """``requestContext``, which the platform makes. Raises ``BodyInvalidError``."""
    found = event.get("requestContext") if isinstance(event, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("http"), dict):
        raise BodyInvalidError(
            'the event has no "requestContext.http": call the function by a function URL, or by an HTTP API of API '
            "Gateway with the payload format 2.0"
        )
    return found
