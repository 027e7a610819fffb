"""An engine played by a test: it answers syncs, events, checkpoints, requests for a run's state, and keeps them."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_RUN_STATE = re.compile(r"/v0/runs/([^/]+)/(batch|actions)")
_CHECKPOINT = re.compile(r"/v1/checkpoint/([^/]+)/async")


@dataclass(frozen=True)
class Received:
    """A request that the app made. Header names are in lower case."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


@dataclass
class FakeEngine:
    """``runs`` are the events and memos to hand out, by run id; ``checkpoint_status`` is the answer to checkpoints."""

    origin: str
    runs: dict[str, tuple[list[Any], dict[str, Any]]] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    checkpoint_status: int = 200
    register_answer: tuple[int, dict[str, Any]] = (200, {"ok": True, "modified": True})

    def to(self, prefix: str) -> list[Received]:
        return [request for request in self.received if request.path.startswith(prefix)]

    def forget(self) -> None:
        self.received.clear()
        self.runs.clear()
        self.checkpoint_status = 200
        self.register_answer = 200, {"ok": True, "modified": True}

    def answer(self, request: Received) -> tuple[int, Any]:
        if request.path == "/fn/register":
            return self.register_answer
        if request.path.startswith("/e/"):
            events = request.body if isinstance(request.body, list) else [request.body]
            return 200, {"ids": [f"01EVENT{index:019}" for index, _ in enumerate(events)], "status": 200}
        if match := _RUN_STATE.fullmatch(request.path):
            events, memos = self.runs.get(match[1], ([], {}))
            return 200, events if match[2] == "batch" else memos
        if _CHECKPOINT.fullmatch(request.path):
            return self.checkpoint_status, {"data": {}, "metadata": {}}
        if request.path == "/dev":
            return 200, {"functions": [], "handlers": []}
        return 404, {"error": "not found", "status": 404}


@contextmanager
def serving_fake_engine(port: int = 0) -> Iterator[FakeEngine]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            text = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = json.loads(text) if text else None
            request = Received(self.command, parts.path, parse_qs(parts.query), headers, body)
            engine.received.append(request)
            status, answer = engine.answer(request)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_DELETE = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: what was received is kept."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        engine = FakeEngine(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield engine
        finally:
            server.shutdown()
            thread.join()
