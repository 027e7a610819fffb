"""The app's event loop, on which the engine's thread runs users' async functions."""

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, ParamSpec, TypeVar

from durably.io.background_loop import get_background_loop

from .errors import CallReturnedError

T = TypeVar("T")
P = ParamSpec("P")


class AppLoop:
    """Where async functions run: on ``loop``, or, while it is ``None``, on the process's background event loop."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._under_way: set[_Call[Any]] = set()
        self._to_app: _Callbacks | None = None
        self._to_engine: _Callbacks | None = None

    @property
    def is_usable(self) -> bool:
        """Whether the loop is known and runs."""
        return self.loop is not None and self.loop.is_running()

    async def run(self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a coroutine function on the app's loop, and wait for it on the running one, the engine's.

        The coroutine has no context variables. Cancelled, this cancels the coroutine and does not wait for its end:
        see ``wait_ended``. Raises what it raises, ``RuntimeError`` if it is cancelled by itself, and
        ``CallReturnedError`` if the app's loop does not run any more.
        """
        to_app = self._to_app = _callbacks_on(self.loop or get_background_loop().loop, self._to_app)
        to_engine = self._to_engine = _callbacks_on(asyncio.get_running_loop(), self._to_engine)
        call = _Call(function(*args, **kwargs), to_app.loop, to_engine, self._under_way)
        try:
            to_app.add(call.begin)
        except RuntimeError:
            call.close()
            raise CallReturnedError("the app's event loop is closed") from None
        self._under_way.add(call)
        try:
            await call.ended
        except asyncio.CancelledError:
            call.ended = to_engine.loop.create_future()
            call.is_cancelled = True
            with contextlib.suppress(RuntimeError):  # The loop is closed.
                to_app.add(call.cancel)
            raise
        assert call.task is not None
        if call.task.cancelled():
            # Otherwise the attempt would never end, and its run would wait forever.
            raise RuntimeError("the call was cancelled by the app's own code (asyncio.CancelledError)")
        return call.task.result()

    async def wait_ended(self, seconds: float) -> None:
        """Wait until all coroutines have ended, including cancelled ones, up to the timeout."""
        if self._under_way:
            await asyncio.wait({call.ended for call in self._under_way}, timeout=seconds)


class _Call(Generic[T]):
    """A coroutine on its way through the app's loop. ``ended`` belongs to the engine's loop."""

    __slots__ = ("_app_loop", "_coroutine", "_to_engine", "_under_way", "ended", "is_cancelled", "task")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, T],
        app_loop: asyncio.AbstractEventLoop,
        to_engine: "_Callbacks",
        under_way: "set[_Call[Any]]",
    ) -> None:
        self._coroutine = coroutine
        self._app_loop = app_loop
        self._to_engine = to_engine
        self._under_way = under_way
        self.ended: asyncio.Future[None] = to_engine.loop.create_future()
        self.is_cancelled = False
        self.task: asyncio.Task[T] | None = None

    def begin(self) -> None:
        """On the app's loop."""
        if self.is_cancelled:
            self.close()
            self._report_end()
            return
        self.task = self._app_loop.create_task(self._coroutine, context=contextvars.Context())
        self.task.add_done_callback(self._report_end)

    def close(self) -> None:
        """The coroutine does not start."""
        self._coroutine.close()

    def cancel(self) -> None:
        """On the app's loop."""
        if self.task is not None:
            self.task.cancel()

    def _report_end(self, _: object = None) -> None:
        self._to_engine.add(self._end)

    def _end(self) -> None:
        self._under_way.discard(self)
        if not self.ended.done():
            self.ended.set_result(None)


class _Callbacks:
    """Calls callbacks of another thread on ``loop``, in their order. Several waiting callbacks wake it once.

    ``add`` appends before it reads ``_is_woken``, and ``_call`` clears that before it reads the queue. So no callback
    is left behind.
    """

    __slots__ = ("_is_woken", "_waiting", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_woken = False

    def add(self, callback: Callable[[], None]) -> None:
        """Raises ``RuntimeError`` if the loop is closed."""
        self._waiting.append(callback)
        if not self._is_woken or self.loop.is_closed():
            self._wake()

    def _wake(self) -> None:
        self._is_woken = True
        self.loop.call_soon_threadsafe(self._call)

    def _call(self) -> None:
        self._is_woken = False
        number = len(self._waiting)
        try:
            while number:
                number -= 1
                self._waiting.popleft()()
        finally:
            if number:  # a callback raised, which the loop logs
                self._wake()


def _callbacks_on(loop: asyncio.AbstractEventLoop, before: _Callbacks | None) -> _Callbacks:
    return before if before is not None and before.loop is loop else _Callbacks(loop)
