"""The servers under test: each framework's apps on a real server of it, at a free port of 127.0.0.1.

Those that can run in threads of this process do; gunicorn forks, and so runs in one of its own.
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3

from ..ports import listening_socket
from ..waiting import eventually
from . import apps
from .variants import PATHS


@dataclass(frozen=True)
class Server:
    """A running server. ``framework`` is the name that the SDK gives it."""

    name: str
    origin: str
    framework: str
    is_async: bool
    streams: bool = True

    def url(self, variant: str) -> str:
        return self.origin + PATHS[variant]


@contextmanager
def fast_api_on_uvicorn(engine: str) -> Iterator[str]:
    with _uvicorn(apps.make_fast_api(engine)) as origin:
        yield origin


@contextmanager
def django_on_uvicorn(engine: str) -> Iterator[str]:
    with _uvicorn(apps.make_django_asgi(engine)) as origin:
        yield origin


@contextmanager
def _uvicorn(app: Any) -> Iterator[str]:
    import uvicorn

    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with listening_socket() as (listener, origin), _in_thread(lambda: server.run(sockets=[listener])):
        yield origin
        server.should_exit = True


@contextmanager
def flask_on_werkzeug(engine: str) -> Iterator[str]:
    with _werkzeug(apps.make_flask(engine)) as origin:
        yield origin


@contextmanager
def django_on_werkzeug(engine: str) -> Iterator[str]:
    with _werkzeug(apps.make_django_wsgi(engine)) as origin:
        yield origin


@contextmanager
def _werkzeug(app: Any) -> Iterator[str]:
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *args: Any) -> None:
            """Nothing."""

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    server.daemon_threads = True  # type: ignore[attr-defined]
    with _in_thread(lambda: server.serve_forever(poll_interval=0.02)):
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def django_on_wsgiref(engine: str) -> Iterator[str]:
    with _wsgiref(apps.make_django_wsgi(engine)) as origin:
        yield origin


@contextmanager
def digital_ocean_simulated(engine: str) -> Iterator[str]:
    with _wsgiref(apps.make_digital_ocean(engine)) as origin:
        yield origin


@contextmanager
def _wsgiref(app: Any) -> Iterator[str]:
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    class Threaded(ThreadingMixIn, WSGIServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients break off on purpose."""

    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = make_server("127.0.0.1", 0, app, Threaded, Quiet)
    with server, _in_thread(lambda: server.serve_forever(poll_interval=0.02)):
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def tornado_on_its_own(engine: str) -> Iterator[str]:
    from tornado.httpserver import HTTPServer

    loop = asyncio.new_event_loop()

    async def start() -> None:
        HTTPServer(apps.make_tornado(engine)).add_socket(listener)

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    with listening_socket() as (listener, origin):
        listener.setblocking(False)
        with _in_thread(run):
            yield origin
            loop.call_soon_threadsafe(loop.stop)


@contextmanager
def flask_on_gunicorn(engine: str) -> Iterator[str]:
    with listening_socket() as (listener, origin):
        settings = Path(__file__).with_name("gunicorn.conf.py")
        command = [sys.executable, "-m", "gunicorn", "--config", str(settings), "--bind", f"fd://{listener.fileno()}"]
        command += ["tests.frameworks.apps:make_flask_of_environment()"]
        process = subprocess.Popen(
            command,
            pass_fds=[listener.fileno()],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "TEST_ENGINE": engine},
            start_new_session=True,
        )
        try:
            yield origin
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


@contextmanager
def _in_thread(run: Callable[[], Any]) -> Iterator[None]:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(5)


_Start = Callable[[str], Any]
_SERVERS: dict[str, tuple[_Start, str, bool, bool]] = {
    "fastapi-uvicorn": (fast_api_on_uvicorn, "fast_api", True, True),
    "flask-werkzeug": (flask_on_werkzeug, "flask", False, True),
    "flask-gunicorn": (flask_on_gunicorn, "flask", False, True),
    "django-wsgi": (django_on_wsgiref, "django", False, True),
    "django-asgi": (django_on_uvicorn, "django", True, True),
    "tornado": (tornado_on_its_own, "tornado", True, True),
    "digitalocean": (digital_ocean_simulated, "digitalocean", False, False),
}
SERVER_NAMES = tuple(_SERVERS)


@contextmanager
def running(name: str, engine: str) -> Iterator[Server]:
    start, framework, is_async, streams = _SERVERS[name]
    with start(engine) as origin:
        server = Server(name, origin, framework, is_async, streams)
        _wait_until_up(server)
        yield server


def _wait_until_up(server: Server) -> None:
    eventually(
        lambda: urllib3.request("GET", server.url("default"), timeout=30, retries=False).status == 200,
        f"{server.name} is up",
        ignore=(urllib3.exceptions.HTTPError,),
    )
