"""Engines in both modes, and the provider that ``ai.infer`` and ``fetch`` speak to."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ..conformance.engine_under_test import Engine
from ..temporal.dev_server import DevServer
from .harness import running_engine


@pytest.fixture(scope="session")
def dev_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running_engine(tmp_path_factory.mktemp("engine") / "dev.db") as engine:
        yield engine


@pytest.fixture(scope="session")
def cloud_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running_engine(tmp_path_factory.mktemp("engine") / "cloud.db", cloud=True) as engine:
        yield engine


@pytest.fixture(scope="session")
def temporal_server() -> Iterator[DevServer]:
    with DevServer() as server:
        yield server


@pytest.fixture(scope="session")
def temporal_engine(temporal_server: DevServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """``durably start --temporal``."""
    directory = tmp_path_factory.mktemp("engine")
    with running_engine(directory / "none.db", cloud=True, temporal=temporal_server.address) as engine:
        yield engine


class Provider:
    """Answers every request with ``{"choices": ["hello"]}``; ``received`` are paths, headers and bodies."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.received: list[tuple[str, dict[str, str], bytes]] = []


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            found.received.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            content = json.dumps({"choices": ["hello"]}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: what was received is kept."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Provider(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield found
        server.shutdown()
        thread.join()
