"""Metrics over HTTP: the page ``/metrics``, and a server of that page alone."""

import asyncio

from aiohttp import hdrs, web

from durably.engine.api.interface import LocalEngine
from durably.engine.api.metrics.exposition import write_text
from durably.protocol.engine_errors import EngineError

from .messages import answer_error, answer_expectation

METRICS_PATH = "/metrics"
_OPENMETRICS = "application/openmetrics-text"
_KEPT_SECONDS = 1.0


async def answer_metrics(engine: LocalEngine, request: web.Request) -> web.Response:
    """The engine's metrics, in the format that the request asks for."""
    return _response(*await _read_page(engine, request.headers.get(hdrs.ACCEPT)))


async def _read_page(engine: LocalEngine, accept: str | None) -> tuple[bytes, str]:
    metrics = await engine.read_metrics()
    # In a thread, because it takes a tenth of a second with hundreds of functions.
    return await asyncio.to_thread(write_text, metrics, accept)


def _response(body: bytes, content_type: str) -> web.Response:
    return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})


class MetricsPage:
    """The metrics for clients without a key.

    A page is kept for a second, and one is made at a time, because clients that need no key must not cost much.
    """

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._lock = asyncio.Lock()
        self._pages: dict[str, tuple[float, bytes, str]] = {}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        accept = _OPENMETRICS if _OPENMETRICS in request.headers.get(hdrs.ACCEPT, "") else ""
        now = asyncio.get_running_loop().time
        try:
            async with self._lock:
                made_at, body, content_type = self._pages.get(accept, (now() - 2 * _KEPT_SECONDS, b"", ""))
                if now() - made_at > _KEPT_SECONDS:
                    body, content_type = await _read_page(self._engine, accept)
                    self._pages[accept] = now(), body, content_type
        except EngineError as error:
            return answer_error(request, error)
        return _response(body, content_type)


def create_metrics_page(engine: LocalEngine) -> web.Application:
    """An application that serves only the metrics, without a key.

    The address at which it is served determines who can read them.
    """
    app, page = web.Application(), MetricsPage(engine)
    for method in (hdrs.METH_GET, hdrs.METH_HEAD):
        app.router.add_route(method, METRICS_PATH, page.answer, expect_handler=answer_expectation)
    return app
