"""A process that does nothing but run workers: what the commands of Durably, Django and Flask have in common.

It ends by SIGTERM or SIGINT, gracefully, within a bound: whoever sent the signal kills what takes longer. Activities
that were cut off run again when their timeouts tell the server.
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import NoReturn

from .check_command import declared_types, keep_metric
from .connection import Temporal
from .health import HealthServer
from .versioning import describe_version
from .workers import Workers, describe

LAST_MOMENT = timedelta(seconds=5)
"""How much longer than their grace workers may take to stop: for cancelled activities to end, and to be reported."""

Say = Callable[[str], None]


def run_worker_process(
    temporal: Temporal, workers: Workers, *, say: Say, health: str | None = None, metrics: str | None = None
) -> None:
    """Work until a signal, or until the workers fail. Off the main thread, where a framework's reloader runs this,
    there are no signals, and the reloader ends the process.

    ``health`` and ``metrics`` are ``host:port`` to serve them at. Raises ``TemporalWorkerError``,
    ``TemporalSettingsError``.
    """
    if metrics is not None:
        temporal.serve_metrics(metrics)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_work(temporal, workers, say, health, metrics))


async def _work(temporal: Temporal, workers: Workers, say: Say, health: str | None, metrics: str | None) -> None:
    with contextlib.ExitStack() as surroundings:
        if health is not None:
            served = surroundings.enter_context(HealthServer(health, workers))
            say(f"health at http://{served.address}/live and /ready")
        stop = asyncio.Event()
        surroundings.enter_context(_signals(stop.set))
        working = asyncio.create_task(workers.run())
        telling = asyncio.create_task(_tell(workers, say, metrics))
        counting = asyncio.create_task(_count_stuck_workflows(temporal, workers)) if metrics is not None else None
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        telling.cancel()
        if counting is not None:
            counting.cancel()
        stopping.cancel()
        if not working.done():
            say(f"stopping; activities have {workers.grace.total_seconds():g} seconds to end")
            await _stop(working, workers.grace)
        if not working.cancelled():
            working.result()
        say("stopped")


async def _tell(workers: Workers, say: Say, metrics: str | None) -> None:
    settings = workers.temporal.settings
    say(f"connecting to {settings.address}, namespace {settings.namespace}")
    await workers.started()
    if metrics is not None:
        say(f"metrics at http://{metrics}/metrics")
    if workers.version is not None:
        say(f"version {describe_version(workers.version)}")
    for declaration in workers.declarations:
        say(f"working on {describe(declaration)}")


async def _count_stuck_workflows(temporal: Temporal, workers: Workers) -> None:
    await workers.started()
    await keep_metric(temporal, declared_types(workers.declarations))


async def _stop(working: "asyncio.Task[None]", grace: timedelta) -> None:
    working.cancel()
    await asyncio.wait([working], timeout=(grace + LAST_MOMENT).total_seconds())
    if not working.done():
        _end_at_once("activities do not end though cancelled; the process ends without them, and they will be retried")


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """A first signal asks to stop, a second ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    signalled = False

    def handle(*_: object) -> None:
        nonlocal signalled
        if signalled:
            _end_at_once("interrupted; activities that ran will be retried")
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
    """Threads of activities that go on would keep the interpreter from ending."""
    print(reason, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)
