"""Requests that the engine makes for steps reach this machine in development, and not in production."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import urllib3

from . import apps
from .conftest import TIMEOUT_SECONDS, Run, Start, write
from .test_start import KEYS, logged

FETCHES = apps.FLASK.replace(
    'ctx.step.run("charge", lambda: {{"charged": ctx.event.data["total"]}})',
    'ctx.step.fetch("page", ctx.event.data["url"]).body',
).replace('ctx.event.data["total"])', 'ctx.event.data["url"])')


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"a page of this machine")

    def log_message(self, format: str, *arguments: object) -> None:
        """Not on the terminal."""


@pytest.fixture
def page() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_in_development_and_nothing_is_kept_in_memory(start: Start, run: Run, directory: Path, page: str) -> None:
    write(directory / "shop.py", FETCHES.format(sdk="durably"))
    dev = start("dev", "shop:app", "--port", "0", "--app-port", "0", "--db", ":memory:")
    dev.until("shop:app is up")
    assert "state is lost when it ends" in dev.output
    result = run("invoke", "shop-place", "--data", f'{{"url": "{page}"}}', "--url", dev.origin)
    assert (result.status, result.stdout) == (0, '"a page of this machine"\n'), result.stderr
    assert dev.stop() == 0
    assert not [path for path in directory.iterdir() if path.name not in ("shop.py", "__pycache__")]


def test_start_refuses_private_addresses(start: Start, run: Run, directory: Path, page: str) -> None:
    write(directory / "shop.py", FETCHES.format(sdk="durably").replace(", is_production=False", ""))
    engine = start("start", "--db", "engine.db", "--port", "0", **KEYS)
    origin = str(logged(engine, "engine started")["origin"])
    with serving(directory, origin) as url:
        assert urllib3.request("PUT", url, timeout=TIMEOUT_SECONDS).status == 200
        result = run("invoke", "shop-place", "--data", f'{{"url": "{page}"}}', "--url", origin, **KEYS)
    assert result.status == 1
    assert "--allow-private-addresses" in result.stderr


@contextmanager
def serving(directory: Path, engine: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        app = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}", "shop:app"],
            cwd=directory,
            env=os.environ | KEYS | {"INNGEST_BASE_URL": engine, "DURABLY_SERVE_ORIGIN": f"http://127.0.0.1:{port}"},
            pass_fds=[listener.fileno()],
            stderr=subprocess.DEVNULL,
        )
        try:
            yield f"http://127.0.0.1:{port}/api/inngest"
        finally:
            app.terminate()
            app.wait(TIMEOUT_SECONDS)
