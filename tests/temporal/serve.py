"""A framework's app on a real server in a separate process: ``python -m tests.temporal.serve NAME ADDRESS FD``."""

import asyncio
import socket
import sys
from typing import Any

from . import apps


def serve_asgi(app: Any, listener: socket.socket) -> None:
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


def serve_wsgi(app: Any, listener: socket.socket) -> None:
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *args: Any) -> None:
            """Do nothing."""

    make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet, fd=listener.fileno()).serve_forever()


def serve_tornado(app: Any, listener: socket.socket) -> None:
    from tornado.httpserver import HTTPServer

    async def serve() -> None:
        listener.setblocking(False)
        HTTPServer(app).add_socket(listener)
        await asyncio.Event().wait()

    asyncio.run(serve())


SERVERS = {
    "fastapi": (apps.make_fast_api, serve_asgi),
    "flask": (apps.make_flask, serve_wsgi),
    "django-asgi": (apps.make_django_asgi, serve_asgi),
    "django-wsgi": (apps.make_django_wsgi, serve_wsgi),
    "tornado": (apps.make_tornado, serve_tornado),
}
ALIKE = {
    **SERVERS,
    "starlette": (apps.make_starlette, serve_asgi),
    "litestar": (apps.make_litestar, serve_asgi),
    "quart": (apps.make_quart, serve_asgi),
}
"""With the adapter that FastAPI's shares its code with, and the examples: what they answer is tested, not more."""


def main() -> None:
    name, address, descriptor = sys.argv[1:]
    make, serve = ALIKE[name]
    serve(make(address), socket.socket(fileno=int(descriptor)))


if __name__ == "__main__":
    main()
