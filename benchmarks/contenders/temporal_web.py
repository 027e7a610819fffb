"""A framework's app with endpoints for orders, served as the framework is: ready with its origin.

Any question is answered with the seconds of CPU that the process has used. Arguments: the framework, the way, the
address of Temporal's server, and the file of the authority that signed for it, if TLS is spoken.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from temporalio.service import TLSConfig

from benchmarks.children import Answerer, serve
from benchmarks.web import serve_app

from .temporal_apps import OPEN
from .temporal_orders import Server


@asynccontextmanager
async def open_web(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    framework, way, address, *authority = arguments
    tls = _tls(Path(authority[0])) if authority else None
    async with OPEN[framework](Server(address, tls), way) as app, _serve(framework, app) as origin:
        yield origin, _cpu_seconds


def _tls(authority: Path) -> TLSConfig:
    return TLSConfig(server_root_ca_cert=authority.read_bytes(), domain="localhost")


def _serve(framework: str, app: Any) -> AbstractAsyncContextManager[str]:
    if framework == "tornado":
        return _serve_tornado(app)
    return _serve_in_threads(app) if framework in ("flask", "django-wsgi") else serve_app(app)


@asynccontextmanager
async def _serve_tornado(app: Any) -> AsyncIterator[str]:
    from tornado.httpserver import HTTPServer
    from tornado.netutil import bind_sockets

    [listener] = bind_sockets(0, "127.0.0.1", backlog=1024)
    server = HTTPServer(app)
    server.add_socket(listener)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.stop()


@asynccontextmanager
async def _serve_in_threads(app: Any) -> AsyncIterator[str]:
    """Werkzeug's server: a thread for each connection."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *args: Any) -> None:
            """Nothing."""

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    await asyncio.to_thread(server.shutdown)


async def _cpu_seconds(question: dict[str, Any]) -> float:
    return time.process_time()


if __name__ == "__main__":
    serve(open_web)
