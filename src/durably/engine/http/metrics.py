"""Metrics over HTTP: the page ``/metrics``, and a server of that page alone."""

import asyncio

from aiohttp import hdrs, web

from durably.engine.core.errors import EngineError
from durably.engine.interface import LocalEngine
from durably.engine.metrics.exposition import write_text

from .messages import answer_error, answer_expectation

METRICS_PATH = "/metrics"


async def answer_metrics(engine: LocalEngine, request: web.Request) -> web.Response:
    """The engine's metrics, in the format that the request asks for."""
    metrics = await engine.read_metrics()
    # In a thread: with hundreds of functions it takes a tenth of a second.
    body, content_type = await asyncio.to_thread(write_text, metrics, request.headers.get(hdrs.ACCEPT))
    return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})


def create_metrics_page(engine: LocalEngine) -> web.Application:
    """An application that serves the metrics alone, without a key.

    The address at which it is served decides who can read them.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await answer_metrics(engine, request)
        except EngineError as error:
            return answer_error(request, error)

    app = web.Application()
    for method in (hdrs.METH_GET, hdrs.METH_HEAD):
        app.router.add_route(method, METRICS_PATH, answer, expect_handler=answer_expectation)
    return app
