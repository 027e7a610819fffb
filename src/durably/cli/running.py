"""Running a command's event loop until SIGINT or SIGTERM, after which it cleans up and ends."""

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager


@contextmanager
def first_failure() -> Iterator[None]:
    """Around a task group whose tasks run until cancelled: the first that fails is why the others end."""
    try:
        yield
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


def run_until_stopped(work: Coroutine[None, None, None]) -> None:
    """A first signal cancels ``work``, which is how a person ends it: no error. A second SIGINT interrupts; a second
    SIGTERM changes nothing, since those who send one often send another, to the whole group say."""

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

    keep_what_is_loaded()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(run())


def keep_what_is_loaded() -> None:
    """The garbage collector need not look through all modules again and again: they are there to stay."""
    gc.collect()
    gc.freeze()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed: an engine gets by with about three quarters of the CPU time."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
