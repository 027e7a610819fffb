"""An engine played by a test, and beside it a place where the functions under test report and wait.

Both are one real HTTP server, so that apps in this process and in others reach them alike.
"""

import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PATIENCE = 60.0
"""Seconds after which a test gives up waiting for what does not come."""


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
    """``answers`` gives the answer to each path, or makes it from the request; the others are a plain 200."""

    origin: str = ""
    answers: dict[str, Answer | Callable[[Received], Answer]] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    _gates: dict[str, threading.Event] = field(default_factory=dict)
    _reports: dict[str, "queue.Queue[str]"] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        with self._lock:
            self.answers.clear()
            self.received.clear()

    def to(self, path: str) -> list[Received]:
        return [request for request in self.received if request.path == path]

    def open_gate(self, name: str) -> None:
        """Let the function that waits at ``{origin}/gates/{name}`` go on."""
        self._gate(name).set()

    def wait_for_report(self, name: str, text: str) -> None:
        """Wait until a function has said ``text`` at ``{origin}/reports/{name}``."""
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
        self.received.append(request)
        answer = self.answers.get(request.path, (200, {"ok": True}))
        return answer(request) if callable(answer) else answer

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
        """Clients under test break off on purpose."""


@contextmanager
def serving_engine() -> Iterator[FakeEngine]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, answer = engine.answer(Received(self.command, parts.path, parse_qs(parts.query), headers, body))
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: what was received is kept."""

    with _Server(("127.0.0.1", 0), Handler) as server:
        engine = FakeEngine(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield engine
        finally:
            server.shutdown()
            thread.join()
