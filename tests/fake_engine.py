"""An engine played by a test: it answers as the protocol demands, and keeps each request.

It is one real HTTP server, so that apps in this process and in others reach it alike. Functions under test may report
to it and wait at it: ``{origin}/reports/{name}`` and ``{origin}/gates/{name}``.
"""

import json
import queue
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PATIENCE = 60.0
"""Seconds that a test waits for a report, and a function at a gate."""

_RUN_STATE = re.compile(r"/v0/runs/([^/]+)/(batch|actions)")
_LOG_LINES = re.compile(r"/v1/runs/[^/]+/logs")
_CHECKPOINT = re.compile(r"/v1/checkpoint/([^/]+)/async")


@dataclass(frozen=True)
class Received:
    """A request that the engine got. Header names are in lower case."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Answer = tuple[int, Any]
"""Status and body: JSON, or ``bytes`` as they are."""


@dataclass
class FakeEngine:
    """An engine whose answers a test may choose.

    ``answers`` gives the answer to a path, or makes it from the request. ``runs`` has the events and memos of runs, by
    run id. ``checkpoint_status`` is the status of answers to checkpoints.
    """

    origin: str = ""
    answers: dict[str, Answer | Callable[[Received], Answer]] = field(default_factory=dict)
    runs: dict[str, tuple[list[Any], dict[str, Any]]] = field(default_factory=dict)
    checkpoint_status: int = 200
    received: list[Received] = field(default_factory=list)
    _gates: dict[str, threading.Event] = field(default_factory=dict)
    _reports: dict[str, "queue.Queue[str]"] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        with self._lock:
            self.answers.clear()
            self.received.clear()
            self.runs.clear()
            self.checkpoint_status = 200

    def to(self, path: str) -> list[Received]:
        """The requests to a path, or to the paths below one that ends with a slash."""
        return [
            request
            for request in self.received
            if request.path == path or (path.endswith("/") and request.path.startswith(path))
        ]

    def open_gate(self, name: str) -> None:
        """Let the function continue that waits at the gate."""
        self._gate(name).set()

    def wait_for_report(self, name: str, text: str) -> None:
        """Wait until a function has reported ``text``."""
        reports = self._reports_of(name)
        while reports.get(timeout=PATIENCE) != text:
            pass

    def answer(self, request: Received) -> Answer:
        _, _, place = request.path.partition("/gates/")
        if place:
            self._gate(place).wait(PATIENCE)
            return 200, {}
        _, _, place = request.path.partition("/reports/")
        if place:
            self._reports_of(place).put(request.body.decode())
            return 200, {}
        if not _LOG_LINES.fullmatch(request.path):  # They come at any time after a call, perhaps in the next test.
            self.received.append(request)
        answer = self.answers.get(request.path) or self._protocols_answer(request)
        return answer(request) if callable(answer) else answer

    def _protocols_answer(self, request: Received) -> Answer:
        if request.path == "/fn/register":
            return 200, {"ok": True, "modified": True}
        if request.path.startswith("/e/"):
            count = len(request.json) if isinstance(request.json, list) else 1
            return 200, {"ids": [f"01EVENT{index:019}" for index in range(count)], "status": 200}
        if match := _RUN_STATE.fullmatch(request.path):
            events, memos = self.runs.get(match[1], ([], {}))
            return 200, events if match[2] == "batch" else memos
        if _CHECKPOINT.fullmatch(request.path):
            return self.checkpoint_status, {"data": {}, "metadata": {}}
        if request.path == "/dev":
            return 200, {"functions": [], "handlers": []}
        return 404, {"error": "not found", "status": 404}

    def _gate(self, name: str) -> threading.Event:
        with self._lock:
            return self._gates.setdefault(name, threading.Event())

    def _reports_of(self, name: str) -> "queue.Queue[str]":
        with self._lock:
            return self._reports.setdefault(name, queue.Queue())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients under test disconnect on purpose."""


@contextmanager
def serving_fake_engine(port: int = 0) -> Iterator[FakeEngine]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, answer = engine.answer(Received(self.command, parts.path, parse_qs(parts.query), headers, body))
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_DELETE = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: what was received is kept."""

    with _Server(("127.0.0.1", port), Handler) as server:
        engine = FakeEngine(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield engine
        finally:
            server.shutdown()
            thread.join()
