"""The engine's state: ``/health`` and ``/ready`` for supervisors, ``/dev`` for SDKs."""

import asyncio
from importlib.metadata import version

from aiohttp import web

from durably.engine.errors import EngineError

from .functions import without_credentials
from .responses import error_response, json_response
from .state import engine_of

READY_SECONDS = 5.0


async def get_health(request: web.Request) -> web.Response:
    """``GET /health``: the process answers. A supervisor restarts one that does not."""
    return json_response({"status": 200, "message": "OK"})


async def get_readiness(request: web.Request) -> web.Response:
    """``GET /ready``: the engine takes events and calls apps; 503 with the reason if it does not.

    The writer's thread checks that the database still belongs to this engine.
    """
    try:
        async with asyncio.timeout(READY_SECONDS):
            await engine_of(request).verify()
    except TimeoutError:
        return error_response(503, f"the database has not answered within {READY_SECONDS:.0f} s")
    except EngineError as error:
        return error_response(503, error.message)
    return json_response({"status": 200, "message": "OK"})


async def get_dev_info(request: web.Request) -> web.Response:
    """``GET /dev``, in dev mode only: its existence tells official SDKs that a dev engine listens here."""
    engine = engine_of(request)
    functions = [
        without_credentials(fn) for app in await engine.list_apps() for fn in await engine.list_functions(app.id) or ()
    ]
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
