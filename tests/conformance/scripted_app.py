"""An app played by a test, for an engine under test: it registers functions, and the test answers each call by hand."""

import contextlib
import json
import queue
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .. import wire
from .engine_under_test import Engine

CALL_SECONDS = 60.0
SDK_HEADERS = {
    "content-type": "application/json",
    "x-inngest-sdk": "conformance:v1.0.0",
    "x-inngest-req-version": "2",
    "x-inngest-framework": "none",
}


@dataclass
class Call:
    """A call that waits for its answer. Header names are in lower case."""

    query: dict[str, str]
    headers: dict[str, str]
    raw: bytes
    _answered: "queue.Queue[tuple[int, bytes, Mapping[str, str]] | None]" = field(default_factory=queue.Queue)

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def ctx(self) -> Any:
        return self.body["ctx"]

    @property
    def steps(self) -> Any:
        return self.body["steps"]

    @property
    def stack(self) -> list[str]:
        return self.ctx["stack"]["stack"]  # type: ignore[no-any-return]

    @property
    def target(self) -> str:
        return self.query["stepId"]

    @property
    def run_id(self) -> str:
        return self.ctx["run_id"]  # type: ignore[no-any-return]

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] = SDK_HEADERS) -> None:
        """Exactly this answer."""
        self._answered.put((status, body, headers))

    def returns(self, value: Any) -> None:
        """The function returned."""
        self.answer(200, json.dumps(value).encode())

    def reports(self, *ops: wire.Op, **headers: str) -> None:
        """Steps, in a 206. Underscores in names of headers stand for hyphens."""
        self.answer(206, json.dumps(ops).encode(), SDK_HEADERS | _named(headers))

    def raises(self, message: str, *, status: int = 500, **headers: str) -> None:
        """The function raised."""
        self.answer(status, json.dumps(wire.error(message)).encode(), SDK_HEADERS | _named(headers))

    def breaks_off(self) -> None:
        """The connection is closed without an answer."""
        self._answered.put(None)


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass
class Function:
    """A function that the app registered. ``event`` is the name of its trigger."""

    app: "ScriptedApp"
    id: str
    event: str

    def trigger(self, data: Mapping[str, Any] | None = None, **fields: Any) -> str:
        """Send its event; returns the event's id."""
        return self.app.engine.send(wire.event(self.event, data, **fields))[0]

    def next_call(self) -> Call:
        """The next call of this function, which the engine has to make within ``CALL_SECONDS``."""
        try:
            return self.app.calls_of(self.id).get(timeout=CALL_SECONDS)
        except queue.Empty:
            raise AssertionError(f"the engine did not call {self.id} within {CALL_SECONDS} s") from None

    def next_calls(self, *step_ids: str) -> list[Call]:
        """One call for each of the steps, which the engine may make at the same time, in the order of the ids."""
        calls = {call.target: call for call in (self.next_call() for _ in step_ids)}
        return [calls[wire.step_hash(step_id)] for step_id in step_ids]

    def first_call(self, data: Mapping[str, Any] | None = None) -> Call:
        self.trigger(data)
        return self.next_call()

    def forget_calls(self) -> None:
        """Break off the calls that wait for an answer."""
        while self.has_call:
            self.next_call().breaks_off()

    @property
    def has_call(self) -> bool:
        return not self.app.calls_of(self.id).empty()


class ScriptedApp:
    """Its functions' ids start with the app's, which is unlike any other's."""

    def __init__(self, engine: Engine, url: str) -> None:
        self.engine, self.url = engine, url
        self.id = f"conf-{uuid.uuid4().hex[:8]}"
        self.calls: dict[str, queue.Queue[Call]] = {}
        self._configs: list[dict[str, Any]] = []

    def calls_of(self, function_id: str) -> "queue.Queue[Call]":
        """For any thread. (A ``defaultdict`` may make two queues for threads that ask at the same time.)"""
        return self.calls.setdefault(function_id, queue.Queue())

    def function(self, name: str = "fn", *, retries: int | None = None, **config: Any) -> Function:
        """Register a function, triggered by an event of its own unless ``triggers`` says otherwise."""
        function_id, event = f"{self.id}-{name}", f"{self.id}/{name}"
        step: dict[str, Any] = {"id": "step", "name": "step"}
        step["runtime"] = {"type": "http", "url": f"{self.url}?fnId={function_id}&stepId=step"}
        if retries is not None:
            step["retries"] = {"attempts": retries}
        self._configs.append(
            {"id": function_id, "name": name, "triggers": [{"event": event}], "steps": {"step": step}} | config
        )
        answer = self.engine.register(self.payload())
        assert answer.status == 200, answer.body
        return Function(self, function_id, event)

    def payload(self) -> dict[str, Any]:
        """The body of the app's sync."""
        return {
            "url": self.url,
            "deployType": "ping",
            "framework": "none",
            "appName": self.id,
            "sdk": "conformance:v1.0.0",
            "v": "0.1",
            "functions": self._configs,
        }

    def close(self) -> None:
        """Close the connections of unanswered calls."""
        for calls in self.calls.values():
            while not calls.empty():
                calls.get().breaks_off()


@contextmanager
def serving_scripted_app(
    engine: Engine, port: int = 0, calls: dict[str, "queue.Queue[Call]"] | None = None
) -> Iterator[ScriptedApp]:
    """``calls`` are where the calls go: those of an app that was served at this port before, say."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            call = Call(query, {name.lower(): value for name, value in self.headers.items()}, raw)
            app.calls_of(query.get("fnId", "")).put(call)
            try:
                answer = call._answered.get(timeout=60)
            except queue.Empty:
                answer = None
            if answer is None:
                self.close_connection = True
                return
            status, body, headers = answer
            if engine.key:
                headers = {"x-inngest-signature": wire.sign(body), **headers}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: tests look at the calls."""

    with _Server(("127.0.0.1", port), Handler) as server:
        app = ScriptedApp(engine, f"http://127.0.0.1:{server.server_address[1]}/api/inngest")
        if calls is not None:
            app.calls = calls
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield app
        finally:
            app.close()
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    """Closes its connections when it is closed.

    A connection that the engine keeps open would outlive the app. If a later app got the same port, the engine would
    send that app's calls over the old connection.
    """

    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)  # An answer that is under way is still sent.

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: an engine may go away while it is answered."""
