"""Starts an app in a separate process, and sends it HTTP requests."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3

from ..wire import Answer

QUICK = {"TEST_MAX_WAIT": "0.02"}
"""For apps whose long polls and event streams must end immediately."""


class AppServer:
    def __init__(self, name: str, origin: str) -> None:
        self.name = name
        self.origin = origin
        self._pool = urllib3.PoolManager(maxsize=32, timeout=60, retries=urllib3.Retry(0, connect=0))

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, **query: Any
    ) -> Answer:
        """``body`` is JSON, or bytes as they are."""
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        response = self._pool.request(
            method, self.origin + path, body=body, headers=headers, fields=query if method == "GET" else None
        )
        return Answer(response.status, response.headers, response.data)

    def get(self, path: str, headers: dict[str, str] | None = None, **query: Any) -> Answer:
        return self.ask("GET", path, None, headers, **query)

    def post(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        return self.ask("POST", path, body, headers)

    def events(self, path: str, headers: dict[str, str] | None = None) -> Generator[dict[str, str], None, None]:
        """Server-sent events, as they arrive."""
        response = self._pool.request("GET", self.origin + path, headers=headers, preload_content=False)
        assert response.headers["Content-Type"].startswith("text/event-stream"), response.data
        event: dict[str, str] = {}
        try:
            for line in _lines(response.stream(64)):
                if line == "" and event:
                    yield event
                    event = {}
                elif line and not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    event[name] = value
        finally:
            response.close()


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode() for line in lines)


@contextmanager
def running(name: str, address: str, module: str = "tests.temporal.serve", **variables: str) -> Iterator[AppServer]:
    """The listening socket is made here, so that requests wait until the app is there. ``variables`` are the
    process's, beside those that it inherits. ``module`` serves the app ``name``."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        command = [sys.executable, "-m", module, name, address, str(listener.fileno())]
        environment = {**os.environ, **variables}
        process = subprocess.Popen(
            command, pass_fds=[listener.fileno()], cwd=Path(__file__).parents[2], env=environment
        )
        try:
            yield AppServer(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            process.terminate()
            process.wait(30)
