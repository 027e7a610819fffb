"""Functions of all apps: which there are, pausing them, and letting them go on."""

from aiohttp import web
from msgspec.structs import replace

from durably.engine.embedded.views import FunctionView
from durably.engine.errors import FunctionNotFoundError
from durably.protocol.api import FunctionBody
from durably.protocol.sync import FunctionConfig
from durably.protocol.text import redact_url

from .responses import data_response
from .state import engine_of


async def list_functions(request: web.Request) -> web.Response:
    """``GET /v1/functions``."""
    return data_response([_body(function) for function in await engine_of(request).list_all_functions()])


async def pause_function(request: web.Request) -> web.Response:
    """``POST /v1/functions/{function_id}/pause``; one that is paused already stays so, which is no error."""
    await engine_of(request).pause_function(request.match_info["function_id"])
    return await _answer(request)


async def resume_function(request: web.Request) -> web.Response:
    """``POST /v1/functions/{function_id}/resume``."""
    await engine_of(request).resume_function(request.match_info["function_id"])
    return await _answer(request)


def without_credentials(config: FunctionConfig) -> FunctionConfig:
    """A function's configuration for display, with redacted URLs: they may contain an app's password."""
    steps = {
        name: replace(step, runtime=replace(step.runtime, url=redact_url(step.runtime.url)))
        for name, step in config.steps.items()
    }
    return replace(config, steps=steps)


async def _answer(request: web.Request) -> web.Response:
    function_id = request.match_info["function_id"]
    for function in await engine_of(request).list_all_functions():
        if function.id == function_id:
            return data_response(_body(function))
    raise FunctionNotFoundError(f"the function {function_id!r} was removed meanwhile")


def _body(function: FunctionView) -> FunctionBody:
    return FunctionBody(
        id=function.id,
        name=function.config.name or function.id,
        config=without_credentials(function.config),
        app_id=function.app_id,
        is_paused=function.is_paused,
    )
