"""Routes of the hosted platform that this engine does not support. The answer and the log give the reason.

SDKs pass an answer 501 with its body on to their users. Some SDKs repeat the request, so the log repeats the
line only after some time.
"""

import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from durably.protocol.text import get_logger

from .responses import ApiError

_LOG_AGAIN_SECONDS = 600.0

_logger = get_logger("durably.engine.api")

_ENDPOINTS = "durable endpoints: make the endpoint send an event, and do the work in a function"
UNSUPPORTED = {
    "/v0/connect/{path:.*}": "Connect: serve the app's functions over HTTP instead of calling connect()",
    "/v1/realtime/{path:.*}": "realtime (publish, subscribe, streams): send messages to browsers by means of your own",
    "/v1/checkpoint": _ENDPOINTS,
    "/v1/checkpoint/{run_id}/steps": _ENDPOINTS,
    "/v1/http/{path:.*}": _ENDPOINTS,
    "/v2/{path:.*}": "the second version of the platform's API, sandboxes among it",
}
"""Routes, and their features."""


def routes() -> list[web.RouteDef]:
    last_said: dict[str, float] = {}
    return [web.route("*", path, _refusing(feature, last_said)) for path, feature in UNSUPPORTED.items()]


def _refusing(feature: str, last_said: dict[str, float]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def refuse(request: web.Request) -> web.StreamResponse:
        message = f"this engine does not support {feature}"
        now = time.monotonic()
        if now - last_said.get(feature, -_LOG_AGAIN_SECONDS) >= _LOG_AGAIN_SECONDS:
            last_said[feature] = now
            _logger.error("an app (%s) needs what is not there: %s", _sdk_of(request), message)
        raise ApiError(501, message, code="not_supported")

    return refuse


def _sdk_of(request: web.Request) -> str:
    sdk = request.headers.get("x-inngest-sdk") or request.headers.get("user-agent") or "unknown SDK"
    return ascii(sdk[:80])
