"""The test engine for synchronous tests: fronts of ``TestEngine``, which runs on the background event loop.

While a method waits, its thread runs the sync functions that are called, so that they share what belongs to the
test's thread: a database transaction of Django's ``TestCase``, thread locals, a debugger.
"""

import datetime as dt
import functools
import queue
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor, Future
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, overload

from durably.events import Event
from durably.functions.function import Function
from durably.io.background_loop import get_background_loop
from durably.protocol.durations import Duration

from .engine_base import DEFAULT_MAX_TIME, TestEngineBase, TestRun
from .link import refuse_inside_calls
from .runs import RunFacts

T = TypeVar("T")
P = ParamSpec("P")


class CallerThread(Executor):
    """Runs submitted jobs in the thread that waits for a result."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        future: Future[T] = Future()
        self._jobs.put(functools.partial(_run, future, functools.partial(fn, *args, **kwargs)))
        return future

    def wait_for(self, awaited: "Future[T]") -> T:
        """Run jobs until ``awaited`` is done; its result."""
        awaited.add_done_callback(lambda _: self._jobs.put(None))
        while not awaited.done():
            if (job := self._jobs.get()) is not None:
                job()
        return awaited.result()


def _run(future: "Future[T]", job: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(job())
    except BaseException as error:
        future.set_exception(error)
        if isinstance(error, KeyboardInterrupt):
            raise


class SyncTestRun(RunFacts):
    """A run of a ``SyncTestEngine``."""

    def __init__(self, engine: "SyncTestEngine", run: TestRun) -> None:
        super().__init__(run._records, run._ref)
        self._engine = engine

    def wait(self, max_time: Duration = DEFAULT_MAX_TIME) -> Self:
        """See ``TestRun.wait``."""
        self._engine._wait_for(self, max_time)
        return self

    def cancel(self) -> bool:
        """See ``TestRun.cancel``."""
        return self._engine.cancel(self)


class SyncTestEngine:
    """Made by ``TestEngine.sync()``; see there for what the methods do."""

    __test__ = False

    def __init__(self, engine: TestEngineBase) -> None:
        self._engine = engine
        self._thread = CallerThread()
        self.describe_runs = engine.describe_runs
        self.mock_step = engine.mock_step
        self.fail_step = engine.fail_step

    def __enter__(self) -> Self:
        self._wait(self._engine._open(self._thread))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._engine._annotate(error)
        self._wait(self._engine._close())

    @property
    def now(self) -> dt.datetime:
        return self._engine.now

    @overload
    def send(self, events: Event) -> SyncTestRun: ...
    @overload
    def send(self, events: Sequence[Event]) -> list[SyncTestRun]: ...
    def send(self, events: Event | Sequence[Event]) -> SyncTestRun | list[SyncTestRun]:
        if isinstance(events, Event):
            return SyncTestRun(self, self._wait(self._engine.send(events)))
        return [SyncTestRun(self, run) for run in self._wait(self._engine.send(events))]

    def invoke(self, function: Function[Any], data: Mapping[str, Any] | None = None) -> SyncTestRun:
        return SyncTestRun(self, self._wait(self._engine.invoke(function, data)))

    def signal(self, name: str, data: Any = None) -> bool:
        return self._wait(self._engine.signal(name, data))

    def cancel(self, run: RunFacts) -> bool:
        return self._wait(self._engine.cancel(run))

    def rerun(self, run: RunFacts) -> SyncTestRun:
        return SyncTestRun(self, self._wait(self._engine.rerun(run)))

    def pause(self, function: Function[Any]) -> None:
        self._wait(self._engine.pause(function))

    def resume(self, function: Function[Any]) -> None:
        self._wait(self._engine.resume(function))

    def runs(self, function: Function[Any] | None = None) -> list[SyncTestRun]:
        return [SyncTestRun(self, run) for run in self._engine.runs(function)]

    def advance(
        self,
        delta: Duration = dt.timedelta(0),
        *,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
    ) -> None:
        self._wait(self._engine.advance(delta, days=days, hours=hours, minutes=minutes, seconds=seconds))

    def run_until_idle(self, max_time: Duration = DEFAULT_MAX_TIME) -> None:
        self._wait(self._engine.run_until_idle(max_time))

    def _wait_for(self, run: RunFacts, max_time: Duration = DEFAULT_MAX_TIME) -> None:
        self._wait(self._engine._wait_for(run, max_time))

    def check_determinism(self, run: RunFacts, *, orders: int = 5) -> None:
        self._wait(self._engine.check_determinism(run, orders=orders))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            refuse_inside_calls()
        except RuntimeError:
            work.close()
            raise
        future = get_background_loop().submit(work)
        try:
            return self._thread.wait_for(future)
        except BaseException:
            future.cancel()
            raise
