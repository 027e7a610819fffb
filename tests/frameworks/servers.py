"""The servers under test: each framework's apps on a real server of it, at a free port of 127.0.0.1.

Those that can run in threads of this process do; gunicorn forks, and so runs in one of its own.
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3

from durably.testing import LambdaSimulator

from ..ports import free_port, listening_socket
from ..waiting import eventually
from . import apps
from .lambda_runtime import LambdaRuntime
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


def on_uvicorn(make: Callable[[str], Any]) -> "_Start":
    return lambda engine: _uvicorn(make(engine))


@contextmanager
def _uvicorn(app: Any) -> Iterator[str]:
    import uvicorn

    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with listening_socket() as (listener, origin), _in_thread(lambda: server.run(sockets=[listener])):
        yield origin
        server.should_exit = True


@contextmanager
def quart_on_hypercorn(engine: str) -> Iterator[str]:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.accesslog = config.errorlog = None
    with listening_socket() as (listener, origin):
        config.bind = [f"fd://{os.dup(listener.fileno())}"]
        with _in_loop(lambda stopped: serve(apps.make_quart(engine), config, shutdown_trigger=stopped.wait)):
            yield origin


@contextmanager
def aiohttp_on_its_own(engine: str) -> Iterator[str]:
    from aiohttp import web

    async def run(stopped: asyncio.Event) -> None:
        runner = web.AppRunner(apps.make_aiohttp(engine), access_log=None)
        await runner.setup()
        await web.SockSite(runner, listener, shutdown_timeout=1).start()
        await stopped.wait()
        await runner.cleanup()

    with listening_socket() as (listener, origin), _in_loop(run):
        yield origin


@contextmanager
def sanic_on_its_own(engine: str) -> Iterator[str]:
    async def run(stopped: asyncio.Event) -> None:
        app = apps.make_sanic(engine)
        server = await app.create_server(sock=listener, return_asyncio_server=True, access_log=False)
        await server.startup()
        await stopped.wait()
        closed = server.close()
        for connection in list(server.connections):  # Since Python 3.12, ``closed`` waits for them.
            connection.close()
        await closed

    with listening_socket() as (listener, origin):
        listener.setblocking(False)
        with _in_loop(run):
            yield origin


@contextmanager
def wsgi_on_wsgiref(engine: str) -> Iterator[str]:
    with _wsgiref(apps.make_wsgi(engine)) as origin:
        yield origin


@contextmanager
def flask_on_werkzeug(engine: str) -> Iterator[str]:
    with werkzeug_serving(apps.make_flask(engine)) as origin:
        yield origin


@contextmanager
def django_on_werkzeug(engine: str) -> Iterator[str]:
    with werkzeug_serving(apps.make_django_wsgi(engine)) as origin:
        yield origin


@contextmanager
def werkzeug_serving(app: Any) -> Iterator[str]:
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
def lambda_simulated(engine: str) -> Iterator[str]:
    with _wsgiref(apps.make_lambda(engine)) as origin:
        yield origin


@contextmanager
def lambda_on_its_runtime(engine: str) -> Iterator[str]:
    """Each process runs one call at a time, as on the platform, which starts more if calls overlap."""
    runtime = LambdaRuntime()
    with runtime.serving() as address, _wsgiref(LambdaSimulator(runtime.invoke)) as origin:
        command = [sys.executable, "-m", "awslambdaric", "tests.frameworks.apps.handle_lambda"]
        environment = {**os.environ, "TEST_ENGINE": engine, "AWS_LAMBDA_RUNTIME_API": address}
        processes = [
            subprocess.Popen(command, cwd=Path(__file__).parents[2], env=environment, stdout=subprocess.DEVNULL)
            for _ in range(2)
        ]
        try:
            yield origin
        finally:
            for process in processes:
                process.terminate()
                process.wait()


@contextmanager
def google_cloud_on_its_own(engine: str) -> Iterator[str]:
    port = free_port()
    source = Path(__file__).with_name("google_function.py")
    command = [sys.executable, "-m", "functions_framework", "--source", source, "--target", "main"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TEST_ENGINE": engine},
        start_new_session=True,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


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

    async def run(stopped: asyncio.Event) -> None:
        HTTPServer(apps.make_tornado(engine)).add_socket(listener)
        await stopped.wait()

    with listening_socket() as (listener, origin):
        listener.setblocking(False)
        with _in_loop(run):
            yield origin


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


@contextmanager
def _in_loop(run: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Run a server in a thread with an event loop, until the event."""
    loop, stopped = asyncio.new_event_loop(), asyncio.Event()
    with asyncio.Runner(loop_factory=lambda: loop) as runner, _in_thread(lambda: runner.run(run(stopped))):
        yield
        loop.call_soon_threadsafe(stopped.set)


_Start = Callable[[str], Any]
_SERVERS: dict[str, tuple[_Start, str, bool, bool]] = {
    "fastapi-uvicorn": (on_uvicorn(apps.make_fast_api), "fast_api", True, True),
    "starlette-uvicorn": (on_uvicorn(apps.make_starlette), "starlette", True, True),
    "asgi-uvicorn": (on_uvicorn(apps.make_asgi), "asgi", True, True),
    "litestar-uvicorn": (on_uvicorn(apps.make_litestar), "litestar", True, True),
    "quart-hypercorn": (quart_on_hypercorn, "quart", True, True),
    "aiohttp": (aiohttp_on_its_own, "aiohttp", True, True),
    "sanic": (sanic_on_its_own, "sanic", True, True),
    "wsgi-wsgiref": (wsgi_on_wsgiref, "wsgi", False, True),
    "flask-werkzeug": (flask_on_werkzeug, "flask", False, True),
    "flask-gunicorn": (flask_on_gunicorn, "flask", False, True),
    "django-wsgi": (django_on_wsgiref, "django", False, True),
    "django-asgi": (on_uvicorn(apps.make_django_asgi), "django", True, True),
    "tornado": (tornado_on_its_own, "tornado", True, True),
    "digitalocean": (digital_ocean_simulated, "digitalocean", False, False),
    "lambda": (lambda_simulated, "aws-lambda", False, False),
    "google-cloud": (google_cloud_on_its_own, "google-cloud", False, True),
    "lambda-awslambdaric": (lambda_on_its_runtime, "aws-lambda", False, False),
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
