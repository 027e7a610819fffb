"""What a web app does with its connection from its start to its end, in the form that ASGI frameworks ask for."""

import asyncio
import concurrent.futures
import logging
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, Self

from .workers import Connection, Workers

WEB_GRACE = timedelta(seconds=2)
"""What activities get when a web process ends that runs a worker: it is development, and a reload should be quick."""

_logger = logging.getLogger("durably.temporal.worker")


class WebConnection(Connection, Protocol):
    """What a lifespan needs of a ``Temporal``."""

    web_worker: "Lifespan | None"

    def start_connecting(self) -> "concurrent.futures.Future[Any] | None": ...


class Lifespan:
    """``FastAPI(lifespan=temporal.lifespan())``, or ``async with temporal.lifespan():`` within one's own."""

    def __init__(self, temporal: WebConnection, *, worker: bool) -> None:
        self._temporal = temporal
        self._worker = worker
        self._workers: Workers | None = None
        self._working: asyncio.Task[None] | None = None

    @property
    def worker_problem(self) -> str | None:
        """Why the workers of this web process do not run; ``None`` if they do, or if it has none."""
        if self._workers is None or self._working is None:
            return None
        if self._working.done():
            return f"the worker in this web process has ended: {_reason(self._working)}"
        stopped = [queue for queue, is_running in self._workers.task_queues.items() if not is_running]
        return f"the worker in this web process has not started yet for {', '.join(stopped)}" if stopped else None

    def __call__(self, app: object = None) -> Self:
        """A framework calls it with its app. One process may run it several times, as tests do, one after another."""
        return self

    async def __aenter__(self) -> None:
        connecting = self._temporal.start_connecting()
        if connecting is not None:
            connecting.add_done_callback(_forget_failure)
        if self._worker:
            self._workers = Workers(self._temporal, grace=WEB_GRACE)
            self._working = asyncio.create_task(self._workers.run())
            self._working.add_done_callback(_log_end)
            self._temporal.web_worker = self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        working, self._working, self._workers = self._working, None, None
        if self._temporal.web_worker is self:
            self._temporal.web_worker = None
        if working is not None:
            working.cancel()
            await asyncio.wait([working])


def _forget_failure(connecting: "concurrent.futures.Future[Any]") -> None:
    """The first request will tell of it."""
    if not connecting.cancelled():
        connecting.exception()


def _log_end(working: "asyncio.Task[None]") -> None:
    if not working.cancelled():
        _logger.error("The worker in this web process has ended, and the app goes on without it: %s", _reason(working))


def _reason(working: "asyncio.Task[None]") -> str:
    if working.cancelled():
        return "its task was cancelled"
    return str(working.exception() or "it stopped without an error")
