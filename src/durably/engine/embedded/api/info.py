"""What the engine says about itself: ``/health`` for supervisors, ``/dev`` for SDKs looking for a dev engine."""

from importlib.metadata import version

from aiohttp import web

from .responses import json_response
from .state import engine_of


async def get_health(request: web.Request) -> web.Response:
    """``GET /health``: the engine answers."""
    return json_response({"status": 200, "message": "OK"})


async def get_dev_info(request: web.Request) -> web.Response:
    """``GET /dev``, in dev mode only: its existence tells official SDKs that a dev engine listens here."""
    engine = engine_of(request)
    functions = [fn for app in await engine.list_apps() for fn in await engine.list_functions(app.id) or ()]
    return json_response(
        {
            "version": version("durably"),
            "authed": False,
            "functions": functions,
            "handlers": [],
            "isSingleNodeService": True,
            "isMissingSigningKey": False,
            "isMissingEventKeys": False,
            "features": {},
        }
    )
