"""Endpoints on platforms that call a function with an event for each request, and buffer its answer."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from durably.app import App
from durably.client import Client
from durably.errors import BodyInvalidError, BodyTooLargeError, FunctionConfigInvalidError, NotSupportedError
from durably.functions.function import Function
from durably.settings import Streaming
from durably.web import check_size

from .mounts import Mount, add_mount, mounts_of
from .requests import CommRequest, CommResponse
from .serve_options import EndpointOptions, ServeOptions

EventHandler = Callable[[Any, Any], dict[str, Any]]
"""A function of an event and its context. Its result has ``statusCode``, ``headers`` and ``body``."""


def make_event_handler(
    framework: str,
    platform: str,
    client: Client,
    functions: Sequence[Function[Any]],
    options: EndpointOptions,
    read: Callable[[Any, Any], tuple[str, CommRequest]],
) -> EventHandler:
    """The function that a platform calls. ``read`` makes the HTTP method and the request of an event and its context.

    Errors of ``read`` are ``BodyInvalidError`` and ``BodyTooLargeError``.
    """
    refuse_engine_in_process(client, platform)
    buffered: ServeOptions = {**options, "streaming": Streaming.DISABLE}
    return handle_events(add_mount(mounts_of(client), framework, client, functions, buffered), read)


def handle_events(mount: Mount, read: Callable[[Any, Any], tuple[str, CommRequest]]) -> EventHandler:
    """The function that a platform calls for an endpoint. ``read`` is that of ``make_event_handler``."""

    def handle(event: Any, context: Any) -> dict[str, Any]:
        try:
            method, request = read(event, context)
        except (BodyInvalidError, BodyTooLargeError) as error:
            return _to_result(mount.handler.refuse(error))
        return _to_result(mount.handler.handle_sync(method, request))

    return handle


def refuse_engine_in_process(client: App | None, platform: str) -> None:
    """Raises ``FunctionConfigInvalidError``."""
    if client is not None and client.in_process is not None:
        raise FunctionConfigInvalidError(
            f"Client.engine cannot be used in {platform}, whose processes do not outlive a request: leave it out, and "
            "have an engine elsewhere call this function"
        )


def refuse_streams(platform: str) -> NoReturn:
    """Raises ``NotSupportedError``."""
    raise NotSupportedError(
        f"{platform} cannot stream, because the platform buffers answers. Mount streams in an app on another platform "
        "that uses the same engine, and hand out client.stream_token(…) here"
    )


def decode_body(body: Any, *, is_base64: bool, name: str) -> bytes:
    """The bytes of a body. ``name`` is its name in the event. Raises ``BodyInvalidError``, ``BodyTooLargeError``."""
    text = body or ""
    try:
        check_size(len(text) * 3 // 4 if is_base64 else len(text))
        return base64.b64decode(text, validate=True) if is_base64 else text.encode()
    except (binascii.Error, ValueError, AttributeError, TypeError):
        raise BodyInvalidError(f'the event\'s "{name}" cannot be decoded') from None


def _to_result(response: CommResponse) -> dict[str, Any]:
    """The result, with the body as a string.

    Platforms would encode an object again, which breaks the signature.
    """
    return {
        "statusCode": int(response.status_code),
        "headers": response.headers,
        "body": response.body.decode(),
    }
