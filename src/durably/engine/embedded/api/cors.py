"""Cross-origin requests: local web pages, and pages of allowed hosts, may send events to a dev engine.

Pages of other hosts are refused before (``auth``). The header lets a developer read the reason.
"""

from aiohttp import web

from .parameters import header_parameter

MAX_AGE_SECONDS = 3600


async def preflight(request: web.Request) -> web.Response:
    """``OPTIONS /e/{key}``."""
    return web.Response(
        status=204,
        headers={
            "access-control-allow-methods": "POST",
            "access-control-allow-headers": header_parameter(request, "access-control-request-headers") or "*",
            "access-control-max-age": str(MAX_AGE_SECONDS),
        },
    )


async def allow_any_origin(request: web.Request, response: web.StreamResponse) -> None:
    """Signal ``on_response_prepare``: also of errors, which the page must be able to read."""
    if request.path.startswith("/e/") and "origin" in request.headers:
        response.headers["access-control-allow-origin"] = "*"
        response.headers["vary"] = "origin"
