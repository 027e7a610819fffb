"""``TestEngine``, its form for synchronous tests, and ``check_determinism``.

``check_determinism`` runs a function in a ``TestEngine``.
"""

import datetime as dt
import functools
import queue
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor, Future
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, overload

from durably.client import Client
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
        """Run jobs until ``awaited`` is done. Returns its result."""
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


def _blocking(
    method: Callable[Concatenate[TestEngineBase, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["SyncTestEngine", P], T]:
    """The method of ``TestEngine``, for synchronous tests."""

    @functools.wraps(method)
    def block(self: "SyncTestEngine", /, *arguments: P.args, **options: P.kwargs) -> T:
        return self._wait(method(self._engine, *arguments, **options))

    return block


class SyncTestEngine:
    """A ``TestEngine`` for synchronous tests, made by ``TestEngine.sync()``.

    See ``TestEngine`` for the methods. The engine runs on the background event loop. While a method waits, its thread
    runs the sync functions that are called. They share the state of the test's thread: a database transaction of
    Django's ``TestCase``, thread locals, a debugger.
    """

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

    signal = _blocking(TestEngineBase.signal)
    cancel = _blocking(TestEngineBase.cancel)
    pause = _blocking(TestEngineBase.pause)
    resume = _blocking(TestEngineBase.resume)
    advance = _blocking(TestEngineBase.advance)
    run_until_idle = _blocking(TestEngineBase.run_until_idle)
    check_determinism = _blocking(TestEngineBase.check_determinism)
    _wait_for = _blocking(TestEngineBase._wait_for)

    def rerun(self, run: RunFacts) -> SyncTestRun:
        return SyncTestRun(self, self._wait(self._engine.rerun(run)))

    def runs(self, function: Function[Any] | None = None) -> list[SyncTestRun]:
        return [SyncTestRun(self, run) for run in self._engine.runs(function)]

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


class TestEngine(TestEngineBase):
    """Runs ``functions`` of ``client``'s app in tests, on a virtual clock.

    Use it as ``async with TestEngine(client, [function]) as engine:``. While it is open, it gets all events that the
    client sends. It belongs to the event loop that opened it.

    - ``now``: The start of its clock (default: the real time).
    - ``calls_at_once``: The maximum number of concurrent calls. With one, the default, a test is deterministic.
    - ``checkpointing``: Lets a call execute several steps, as in-process mode does. Without it each step ends its call,
      so that functions are replayed as often as possible.
    - ``allow_private_addresses``: Lets ``fetch`` and ``ai.infer``, if they are not mocked, reach servers on this
      machine.
    - ``retention``: How long ended runs are kept, for tests with very many runs. By default all are kept.
    - ``max_steps``, ``max_depth``: As in ``EngineSettings``.
    """

    def sync(self) -> SyncTestEngine:
        """This engine for synchronous tests.

        Use it as ``with TestEngine(client, [function]).sync() as engine:``.
        """
        return SyncTestEngine(self)


async def check_determinism(
    client: Client, function: Function[Any], event: Event, *, mocks: Mapping[str, Any] | None = None, orders: int = 5
) -> None:
    """Run a function on an event to its end, and check that it is deterministic.

    The run is in a ``TestEngine`` of its own. ``mocks`` are the results of its steps, by id; see
    ``TestEngine.mock_step``, and ``TestEngine.check_determinism``.
    """
    async with TestEngine(client, [function]) as engine:
        for step_id, output in (mocks or {}).items():
            engine.mock_step(step_id, returns=output)
        run = await engine.send(event)
        await run.wait()
        await engine.check_determinism(run, orders=orders)
