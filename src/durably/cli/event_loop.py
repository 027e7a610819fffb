"""The event loop of a command that runs until SIGINT or SIGTERM."""

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager


@contextmanager
def first_failure() -> Iterator[None]:
    """Raise the error of a task group's first failed task, not the group of errors.

    It is put around a task group whose tasks run until cancelled.
    """
    try:
        yield
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


def run_until_stopped(work: Coroutine[None, None, None]) -> None:
    """Run ``work`` until it ends, or until a first signal cancels it.

    A cancellation by the signal is not an error. A second SIGINT interrupts. A second SIGTERM is ignored: supervisors
    often send one to the process and one to its group.
    """

    async def run() -> None:
        task = asyncio.create_task(work)
        stopped = False

        def stop(*_: object) -> None:
            nonlocal stopped
            if stopped:
                return
            stopped = True
            loop.call_soon_threadsafe(task.cancel)
            signal.signal(signal.SIGINT, signal.default_int_handler)

        loop = asyncio.get_running_loop()
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, stop)
        try:
            await task
        except asyncio.CancelledError:
            if not stopped:
                raise

    freeze_loaded_modules()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(run())


def freeze_loaded_modules() -> None:
    """Exempt the loaded modules from garbage collections.

    Each collection would traverse them.
    """
    gc.collect()
    gc.freeze()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The factory of uvloop's event loop, or ``None`` if uvloop is not installed.

    With uvloop, an engine needs about three quarters of the CPU time.
    """
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
