"""Errors of an engine, as commands see them over HTTP."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from durably.cli.client import AnswerError, HttpClient
from durably.cli.events import send


class Engine(BaseHTTPRequestHandler):
    """It stores events, and lists only those that started runs, as an engine on Temporal does."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(200, {"ids": ["01A"], "status": 200})

    def do_GET(self) -> None:
        if self.path.endswith("/runs"):
            self._answer(200, {"data": [], "metadata": {"fetched_at": "2026-01-01T00:00:00Z", "cached_until": None}})
        else:
            self._answer(501, {"error": "no run was started by it", "status": 501, "code": "NotSupportedError"})

    def _answer(self, status: int, body: object) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, format: str, *arguments: object) -> None:
        """No output."""


@pytest.fixture
def origin() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_error_has_the_status_of_the_answer(origin: str) -> None:
    with pytest.raises(AnswerError, match="no run was started by it") as raised:
        HttpClient(origin, is_development=True).get_event_sync("01A")
    assert raised.value.status == 501


def test_event_that_starts_no_run_is_not_an_error(origin: str) -> None:
    """It may have woken a run: an engine on Temporal lists only events that started one."""
    done = CliRunner().invoke(send, ["order/shipped", "--url", origin])
    assert done.exit_code == 0, done.output
    assert done.stdout == "01A\n"
    assert "does not list what else an event does" in " ".join(done.stderr.split())
