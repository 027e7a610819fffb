"""A process that only runs workers, and its health endpoint.

The commands of Durably, Django and Flask use it.

SIGTERM and SIGINT end it gracefully, within a time limit, because supervisors kill a process that takes longer.
Interrupted activities run again after their timeouts.
"""

import asyncio
import concurrent.futures
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NoReturn, Self

from durably.temporal.client.connection import Temporal
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.settings import check_address

from .workers import Workers

AFTER_GRACE = timedelta(seconds=5)
"""Seconds after the grace period in which cancelled activities end and are reported."""

PrintLine = Callable[[str], None]


def run_worker_process(
    temporal: Temporal,
    workers: Workers,
    *,
    print_line: PrintLine,
    health: str | None = None,
    metrics: str | None = None,
) -> None:
    """Work until a signal, or until the workers fail.

    A framework's reloader calls this in a thread without signals, and ends the process itself. ``health`` and
    ``metrics`` are the ``host:port`` of their endpoints. Raises ``TemporalWorkerError``,
    ``TemporalSettingsError``.
    """
    if metrics is not None:
        temporal.serve_metrics(metrics)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_work(workers, print_line, health, metrics))


async def _work(workers: Workers, print_line: PrintLine, health: str | None, metrics: str | None) -> None:
    with contextlib.ExitStack() as context:
        if health is not None:
            served = context.enter_context(HealthServer(health, workers))
            print_line(f"health at http://{served.address}/live and /ready")
        stop = asyncio.Event()
        context.enter_context(_signals(stop.set))
        working = asyncio.create_task(workers.run())
        reporting = asyncio.create_task(_report_start(workers, print_line, metrics))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        reporting.cancel()
        stopping.cancel()
        if not working.done():
            print_line(f"stopping; activities have {workers.grace.total_seconds():g} seconds to end")
            working.cancel()
            await asyncio.wait([working], timeout=(workers.grace + AFTER_GRACE).total_seconds())
            if not working.done():
                _end_at_once(
                    "activities do not end despite their cancellation; the process ends without them, and they will be "
                    "retried"
                )
        if not working.cancelled():
            working.result()
        print_line("stopped")


async def _report_start(workers: Workers, print_line: PrintLine, metrics: str | None) -> None:
    settings = workers.temporal.settings
    print_line(f"connecting to {settings.address}, namespace {settings.namespace}")
    await workers.started()
    if metrics is not None:
        print_line(f"metrics at http://{metrics}/metrics")
    if workers.version is not None:
        print_line(f"version {workers.version.version.to_canonical_string()}")
    for declaration in workers.declarations:
        workflows = ", ".join(workflow.__name__ for workflow in declaration.workflows) or "no workflows"
        activities = ", ".join(getattr(each, "__name__", type(each).__name__) for each in declaration.activities)
        print_line(f"working on {declaration.task_queue}: {workflows}; {activities or 'no activities'}")


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """The first signal stops the workers, a second one ends the process immediately."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    signalled = False

    def handle(*_: object) -> None:
        nonlocal signalled
        if signalled:
            _end_at_once("interrupted; running activities will be retried")
        signalled = True
        loop.call_soon_threadsafe(stop)

    heard = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, handle) for each in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_at_once(reason: str) -> NoReturn:
    """End the process without the interpreter's shutdown.

    The shutdown would wait for the threads of activities.
    """
    print(reason, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


PATIENCE = timedelta(seconds=2)
"""Seconds after which an event loop without an answer counts as blocked."""


class HealthServer:
    """Serves ``GET /live`` and ``GET /ready`` for orchestrators.

    They are at ``http://{address}``. The server is a context manager.

    - ``/live`` is 200 while the event loop answers. Restart the process if it is not.
    - ``/ready`` is 200 if all workers run and the server answers for the namespace. Otherwise the status is 503, with
      the problem as JSON.

    A separate thread serves it, so that a blocked event loop is reported. ``Temporal.serve_metrics`` serves metrics.
    """

    def __init__(self, address: str, workers: Workers) -> None:
        check_address(address, "the address of the health endpoint", to_listen_at=True)
        self.address = address
        self._workers = workers
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        """Start the server. Enter it on the event loop of the workers.

        Raises ``TemporalSettingsError`` when the port is taken.
        """
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
            self._send(HTTPStatus.NOT_FOUND, {"problem": "the paths are /live and /ready"})
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
            return "the event loop is blocked: async code makes a blocking call"
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
        """Probes arrive every few seconds, and are not logged."""
