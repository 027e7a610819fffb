"""Where an orchestrator asks whether a worker process lives and works: ``GET /live`` and ``GET /ready``.

Served from a thread of its own, so that a blocked event loop is seen for what it is. Metrics are not its business: the
SDK's runtime serves them (``Temporal.serve_metrics``).
"""

import asyncio
import concurrent.futures
import json
import threading
from datetime import timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from .errors import TemporalSettingsError
from .settings import check_address
from .workers import Workers

PATIENCE = timedelta(seconds=2)
"""How long the event loop may take to answer before it counts as blocked."""


class HealthServer:
    """Tells of ``workers`` at ``http://{address}``, from ``with`` to its end; ``address`` is ``host:port``.

    ``/live`` is 200 while the event loop turns: restart the process when it is not. ``/ready`` is 200 when all workers
    run and the server answers for the namespace. Anything else is 503; the body is JSON that says what is wrong.
    """

    def __init__(self, address: str, workers: Workers) -> None:
        check_address(address, "the address to tell of health at")
        self.address = address
        self._workers = workers
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        """To be entered on the event loop of the workers. Raises ``TemporalSettingsError`` when the port is taken."""
        host, _, port = self.address.rpartition(":")
        handler = type("Handler", (_Handler,), {"loop": asyncio.get_running_loop(), "workers": self._workers})
        try:
            self._server = ThreadingHTTPServer((host.strip("[]"), int(port)), handler)
        except OSError as error:
            raise TemporalSettingsError(f"health cannot be served at {self.address}: {error.strerror}") from error
        self.address = f"{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    loop: asyncio.AbstractEventLoop
    workers: Workers

    def do_GET(self) -> None:
        checks = {"/live": (self._check_loop,), "/ready": (self._check_loop, self._check_work)}.get(self.path)
        if checks is None:
            self._send(HTTPStatus.NOT_FOUND, {"problem": "there is only /live and /ready"})
        elif problem := next(filter(None, (check() for check in checks)), None):
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, {"problem": problem, "workers": self.workers.task_queues})
        else:
            self._send(HTTPStatus.OK, {"workers": self.workers.task_queues})

    def _check_loop(self) -> str | None:
        turned: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.loop.call_soon_threadsafe(turned.set_result, None)
        try:
            turned.result(PATIENCE.total_seconds())
        except TimeoutError:
            return "the event loop is blocked: something asynchronous calls something that waits"
        return None

    def _check_work(self) -> str | None:
        if stopped := [queue for queue, is_running in self.workers.task_queues.items() if not is_running]:
            return f"no worker runs for {', '.join(stopped)}"
        return asyncio.run_coroutine_threadsafe(self.workers.check_server(PATIENCE), self.loop).result()

    def _send(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: probes come every few seconds."""
