"""The engine for tests: the SQLite engine on a virtual clock.

It is the whole engine, and calls functions in this process. Time stands still until a test advances it, from one timer
to the next. Each method returns when no more work can be done at that time, so that a test never races with the code
under test. ``SyncTestEngine`` is its form for synchronous tests.
"""

import datetime as dt
import functools
import itertools
import queue
import random
import tempfile
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, overload

import msgspec

from durably.asks import prepare_message
from durably.client import Client
from durably.comm import CommHandler
from durably.embedded.calls import sync_of
from durably.engine.core.backoff import standard_backoff
from durably.engine.model.calls import Caller
from durably.engine.model.questions import Asked, AskState
from durably.engine.model.runs import Run, to_datetime, to_milliseconds
from durably.engine.model.settings import Durability, EngineSettings
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.sqlite.runtime import Runtime
from durably.events import Event, as_data
from durably.functions.function import Function
from durably.io.background_loop import get_background_loop
from durably.io.http_client import AsyncIO
from durably.protocol.durations import Duration, to_timedelta
from durably.protocol.engine_errors import RunNotFoundError
from durably.protocol.events import InternalEvent
from durably.protocol.limits import MAX_DEPTH, MAX_STEPS
from durably.questions import decode_reply
from durably.runs import restore

from .determinism import DeterminismCheck, Past
from .link import Mocks, TestCaller, TestLink, VirtualClock, calling, linked, raising, refuse_inside_calls, returning
from .runs import Inspector, Recorder, Records, RunFacts, RunRef, RunStuckError, format_span

T = TypeVar("T")

DEFAULT_MAX_TIME = dt.timedelta(days=400)
"""More than the 366 days that a single sleep or wait may last."""
_MILLISECOND = dt.timedelta(milliseconds=1)
_MOST_DESCRIBED = 10
_ID_SEED = 0
"""Random-looking bytes for ids, the same in each test. The times in ids are those of its clock."""


def _id_of(function: Function[Any] | None) -> str | None:
    return None if function is None else function.id


class TestRun(RunFacts):
    """A run of a ``TestEngine``."""

    def __init__(self, engine: "TestEngine", records: Records, ref: RunRef) -> None:
        super().__init__(records, ref)
        self._engine = engine

    async def wait(self, max_time: Duration = DEFAULT_MAX_TIME) -> Self:
        """Advance the clock until the run has ended, with any status. Returns the run.

        Raises ``RunStuckError``, which names what the run waits for, if nothing is scheduled, or if the run does not
        end within ``max_time`` of virtual time.
        """
        await self._engine._wait_for(self, max_time)
        return self

    async def cancel(self) -> bool:
        """Cancel the run. Returns ``False`` if it has already ended."""
        return await self._engine.cancel(self)


class TestEngine:
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

    __test__ = False

    def __init__(
        self,
        client: Client,
        functions: Sequence[Function[Any]],
        *,
        now: dt.datetime | None = None,
        calls_at_once: int = 1,
        checkpointing: bool = False,
        allow_private_addresses: bool = False,
        retention: Duration | None = None,
        max_steps: int = MAX_STEPS,
        max_depth: int = MAX_DEPTH,
    ) -> None:
        self._apps: list[tuple[Client, Sequence[Function[Any]]]] = [(client, functions)]
        self._clock = VirtualClock(to_milliseconds(now or dt.datetime.now(dt.UTC)))
        self._settings = EngineSettings(
            backoff=lambda attempt, jitter: standard_backoff(attempt, 0.0),
            max_calls=calls_at_once,
            allow_private_addresses=allow_private_addresses,
            durability=Durability.OFF,
            retention=None if retention is None else to_timedelta(retention),
            max_steps=max_steps,
            max_depth=max_depth,
            close_grace=dt.timedelta(0),
            clock=self._clock,
            entropy=random.Random(_ID_SEED).randbytes,
        )
        self._link = TestLink(self._wait_for_id, self._ask_as_handle, checkpointing=checkpointing)
        self._mocks = Mocks()
        self._recorder = Recorder()
        self._ask_ids = itertools.count(1)
        self._stack = AsyncExitStack()
        self._calls_at_once = calls_at_once
        self._records: Records | None = None

    def with_app(self, client: Client, functions: Sequence[Function[Any]]) -> Self:
        """Run the functions of another app too. Call it before the engine is opened."""
        self._apps.append((client, functions))
        return self

    def sync(self) -> "SyncTestEngine":
        """This engine for synchronous tests.

        Use it as ``with TestEngine(client, [function]).sync() as engine:``.
        """
        return SyncTestEngine(self)

    # opening and closing

    async def __aenter__(self) -> Self:
        pool = ThreadPoolExecutor(self._calls_at_once, thread_name_prefix="durably-test-call")
        self._stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        try:
            return await self._open(pool)
        except BaseException:
            await self._close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._annotate(error)
        await self._close()

    def _annotate(self, error: BaseException | None) -> None:
        """Add the state of the engine's runs to an error that ends the test."""
        if error is not None and self._records is not None and (described := self.describe_runs(besides=str(error))):
            error.add_note(described)

    def describe_runs(self, *, besides: str = "") -> str:
        """The timelines of the latest runs, and the mocks that no step has used.

        Timelines in ``besides`` are omitted.
        """
        runs = [self._run(run.id) for run in self._open_records.inspector.latest_runs(_MOST_DESCRIBED + 1)]
        lines = [text for run in runs[-_MOST_DESCRIBED:] if (text := run.timeline()) not in besides]
        if lines or not besides:
            heading = "latest runs" if len(runs) > _MOST_DESCRIBED else "runs"
            lines.insert(0, f"The test engine's {heading}, at {self.now:%Y-%m-%d %H:%M:%S} UTC:")
        if unmet := self._mocks.unmet():
            lines.append(f"No step has used {', '.join(unmet)}.")
        return "\n".join(lines)

    async def _open(self, thread_pool: Executor) -> Self:
        """Open the engine. ``thread_pool`` runs sync functions."""
        async with AsyncExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="durably-test-"))
            for client, functions in self._apps:
                stack.enter_context(linked(self._link, client))
                CommHandler(client=client, framework="testing", functions=functions, thread_pool=thread_pool)
            path = Path(directory) / "engine.db"
            self._runtime = await Runtime.open(path, self._settings, self._make_caller)
            stack.push_async_callback(self._runtime.close)
            self._engine = SqliteEngine(self._runtime)
            self._link.open(self._engine, self._clock)
            stack.enter_context(self._runtime.subscriptions.listen(self._recorder.note))
            inspector = Inspector(path, self._runtime.call_dispatcher)
            stack.callback(inspector.close)
            for handler in self._link.handlers.values():
                await self._engine.sync_app(sync_of(handler), in_process=True)
            await self._clock.rest()
            await self._stack.enter_async_context(stack.pop_all())
        self._records = Records(inspector, self._recorder, self._clock)
        return self

    async def _close(self) -> None:
        """Stop calls under way, and delete the database."""
        self._records = None
        await self._stack.aclose()

    def _make_caller(self, settings: EngineSettings) -> Caller:
        return TestCaller(self._link.handlers, settings, self._link.checkpoints, self._mocks.replace_step)

    @property
    def _open_records(self) -> Records:
        if self._records is None:
            raise RuntimeError("the test engine is not open: use it in `async with` or, made by .sync(), in `with`")
        return self._records

    # operations

    @overload
    async def send(self, events: Event) -> TestRun: ...
    @overload
    async def send(self, events: Sequence[Event]) -> list[TestRun]: ...
    async def send(self, events: Event | Sequence[Event]) -> TestRun | list[TestRun]:
        """Send an event, or several, as the first app's client does.

        Returns the run of the event, or all runs of several events. The run of a single event is looked up at its first
        use, because an event may only wake other runs.
        """
        records = await self._rest()
        ids = await self._apps[0][0].send(events)
        await self._clock.rest()
        if isinstance(events, Event):
            return TestRun(self, records, RunRef(event_id=ids[0], event_name=events.name))
        runs = {run.id: run for event_id in ids for run in records.inspector.runs_of_event(event_id)}
        return [self._run(run_id) for run_id in runs]

    async def invoke(self, function: Function[Any], data: Mapping[str, Any] | None = None) -> TestRun:
        """Run a function, whatever its trigger, with ``data`` as its event's data."""
        receipt = await self._apply(self._engine.invoke(function.id, dict(as_data(data) or {})))
        if receipt.run_id is None:
            records = self._open_records
            return TestRun(self, records, RunRef(event_id=receipt.event_id, event_name=InternalEvent.FUNCTION_INVOKED))
        return self._run(receipt.run_id)

    async def signal(self, name: str, data: Any = None) -> bool:
        """Send a signal. Returns whether a run waited for it."""
        return await self._apply(self._engine.signal(name, data)) is not None

    @overload
    async def ask(
        self, run: RunFacts, name: str, data: Any = None, *, reply_type: type[T], id: str | None = None
    ) -> T: ...
    @overload
    async def ask(self, run: RunFacts, name: str, data: Any = None, *, id: str | None = None) -> Any: ...
    async def ask(
        self, run: RunFacts, name: str, data: Any = None, *, reply_type: Any = Any, id: str | None = None
    ) -> Any:
        """Send a message to a run that receives it, and advance the clock until it replies. Returns the reply.

        Raises the errors of ``RunHandle.ask``, and ``RunStuckError`` if the run does not receive a message of this
        name, or nothing is scheduled and it has not replied.
        """
        ask_id = id or f"ask-{next(self._ask_ids)}"
        asked = await self._deliver(run, name, data, ask_id)
        while asked.state is not AskState.REPLIED:
            if self._clock.next_due() is None:
                raise run.why_stuck(f"it has received {name!r}, but does not reply")
            await self._clock.advance()
            asked = await self._try_to_ask(run, name, data, ask_id)
        client = self._apps[0][0]
        reply = None if asked.reply is None else msgspec.json.decode(asked.reply)
        reply = await restore(client, reply, AsyncIO(), client.middleware)
        return decode_reply(name, reply, reply_type, client)

    async def answer(self, run: RunFacts, name: str, data: Any = None, *, id: str | None = None) -> None:
        """Send a message to a run that receives it, without a wait for a reply. See ``ask``."""
        await self._deliver(run, name, data, id or f"ask-{next(self._ask_ids)}")

    async def _deliver(self, run: RunFacts, name: str, data: Any, ask_id: str) -> Asked:
        await self._rest()
        asked = await self._try_to_ask(run, name, data, ask_id)
        if asked.state is AskState.WAITING:
            raise run.why_stuck(f"it does not receive {name!r} now (advance the clock first if it will)")
        return asked if asked.state is AskState.REPLIED else await self._try_to_ask(run, name, data, ask_id)

    async def _try_to_ask(self, run: RunFacts, name: str, data: Any, ask_id: str) -> Asked:
        """Send a message, and wait for its effects."""
        client = self._apps[0][0]
        encoded = await prepare_message(client, name, data, AsyncIO(), client.middleware)
        asked = await self._engine.ask_run(run.id, name, encoded, id=ask_id, needs_reply=False, within=0)
        await self._clock.rest()
        return asked

    async def cancel(self, run: RunFacts) -> bool:
        """Cancel the run. Returns ``False`` if it has already ended."""
        return await self._apply(self._engine.cancel_run(run.id))

    async def rerun(self, run: RunFacts) -> TestRun:
        """Run the same function again with the same event."""
        return self._run(await self._apply(self._engine.rerun(run.id)))

    async def pause(self, function: Function[Any]) -> None:
        """Start no more runs of a function, until it is resumed."""
        await self._apply(self._engine.pause_function(function.id))

    async def resume(self, function: Function[Any]) -> None:
        """Allow a paused function to start runs again."""
        await self._apply(self._engine.resume_function(function.id))

    def runs(self, function: Function[Any] | None = None) -> list[TestRun]:
        """All runs, or those of one function, oldest first."""
        found = self._open_records.inspector.runs(_id_of(function))
        return [self._run(run.id) for run in found]

    # time

    @property
    def now(self) -> dt.datetime:
        """The time on the engine's clock, UTC."""
        return to_datetime(self._clock.now())

    async def advance(
        self,
        delta: Duration = dt.timedelta(0),
        *,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
    ) -> None:
        """Advance the clock, and do all work that becomes due, each at its own time.

        ``delta`` is a string like ``"3d"``, a ``timedelta`` or milliseconds; the other arguments are added to it.
        """
        await self._rest()
        given = dt.timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        until = self._clock.now() + round((to_timedelta(delta) + given) / _MILLISECOND)
        while await self._clock.advance(until):
            pass

    async def run_until_idle(self, max_time: Duration = DEFAULT_MAX_TIME) -> None:
        """Advance the clock until nothing is scheduled.

        Raises ``RunStuckError`` if that takes longer than ``max_time``, as with a cron trigger, which never ends.
        """
        await self._rest()
        max_time = to_timedelta(max_time)
        until = self._clock.now() + round(max_time / _MILLISECOND)
        while (due := self._clock.next_due()) is not None:
            if due > until:
                raise RunStuckError(
                    f"something is still due after {format_span(max_time)} of virtual time, at {to_datetime(due)}"
                )
            await self._clock.advance()

    async def _wait_for(self, run: RunFacts, max_time: Duration = DEFAULT_MAX_TIME) -> None:
        """Wait for a run; see ``TestRun.wait``."""
        await self._rest()
        max_time = to_timedelta(max_time)
        until = self._clock.now() + round(max_time / _MILLISECOND)
        while not run.has_ended:
            due = self._clock.next_due()
            if due is None:
                raise run.why_stuck("nothing is scheduled")
            if due > until:
                raise run.why_stuck(
                    f"{format_span(max_time)} of virtual time have passed (wait(max_time=…) allows more)"
                )
            await self._clock.advance()

    async def _wait_for_id(self, run_id: str, timeout: float | None) -> Run:
        """Wait for a run as a handle does. ``timeout`` is in seconds of virtual time. Raises ``TimeoutError``."""
        await self._rest()
        until = None if timeout is None else self._clock.now() + round(timeout * 1000)
        while True:
            run = await self._engine.get_run(run_id)
            if run is None:
                raise RunNotFoundError(f"no run has the id {run_id!r}")
            if run.status.has_ended:
                return run
            if until is None and self._clock.next_due() is None:
                raise self._run(run.id).why_stuck("nothing is scheduled, so it cannot end")
            if not await self._clock.advance(until):
                raise TimeoutError(f"run {run_id} has not ended within {timeout:g} s of virtual time")

    async def _ask_as_handle(self, arguments: Mapping[str, Any]) -> Asked:
        """Execute ``ask_run``. The seconds for which it waits are of virtual time."""
        await self._rest()
        until = self._clock.now() + round(arguments["within"] * 1000)
        with self._runtime.run_watches.watching(arguments["run_id"]) as wait_for_change:
            while True:
                asked = await self._link.keep_time_during(self._engine.ask_run(**{**arguments, "within": 0}))
                if asked.is_final(needs_reply=arguments.get("needs_reply", True)):
                    return asked
                await self._clock.rest()
                if not await wait_for_change(0) and not await self._clock.advance(until):
                    return asked

    # steps

    def mock_step(
        self,
        step_id: str,
        *,
        returns: Any = None,
        raises: BaseException | type[BaseException] | None = None,
        calls: Callable[..., Any] | None = None,
        function: Function[Any] | None = None,
    ) -> None:
        """Give steps with this id, of any kind, a result from now on.

        - ``returns``: The value that the step returns to its function: of a wait an ``Event``, a ``Signal``, or
          ``None`` for a timeout; of ``fetch`` a ``FetchResponse``.
        - ``raises``: The error of its handler, which is retried like any error; a ``NonRetriableError`` is final.
        - ``calls``: Called instead of the handler with its arguments, or, for steps without a handler, with a
          dictionary of the step's options.
        - ``function``: Limits it to one function.
        """
        if sum(given is not None for given in (returns, raises, calls)) > 1:
            raise TypeError("mock_step takes one of returns, raises and calls")
        if calls is not None:
            make = calling(calls)
        elif raises is not None:
            make = raising(raises() if isinstance(raises, type) else raises)
        else:
            make = returning(returns)
        self._mocks.mock(step_id, _id_of(function), make)

    def fail_step(
        self,
        step_id: str,
        *,
        attempts: Collection[int] | None = None,
        error: BaseException | type[BaseException] | None = None,
        function: Function[Any] | None = None,
    ) -> None:
        """Fail steps with this id from now on, before their handlers run.

        ``attempts`` are the attempts that fail (from 0, as ``ctx.attempt``); by default all. ``error`` is by default a
        ``RuntimeError``.
        """
        if error is None:
            error = RuntimeError(f"the test makes step {step_id!r} fail")
        elif isinstance(error, type):
            error = error()
        self._mocks.fail(step_id, _id_of(function), attempts, error)

    async def check_determinism(self, run: RunFacts, *, orders: int = 5) -> None:
        """Check that the run's function finds the same steps each time it is replayed.

        It is called with the memos of one more step each time, for parallel steps in ``orders`` other orders, and at
        other times. Its steps are not executed, but its code between them is, many times. Raises
        ``NotDeterministicError``, which names the step.
        """
        await self._rest()
        inspector = self._open_records.inspector
        past = Past(run.id, run.function_id, run.events, inspector.finished_steps(run.id))
        handler = next(each for each in self._link.handlers.values() if run.function_id in each.function_ids)
        await DeterminismCheck(handler, past, run.status, orders=orders).run()

    async def _apply(self, operation: Coroutine[Any, Any, T]) -> T:
        """Execute an operation of the engine, and wait for its effects.

        All earlier work is completed first.
        """
        try:
            await self._rest()
        except BaseException:
            operation.close()
            raise
        result = await operation
        await self._clock.rest()
        return result

    async def _rest(self) -> Records:
        """Wait until all earlier work is done."""
        refuse_inside_calls()
        records = self._open_records
        await self._clock.rest()
        return records

    def _run(self, run_id: str) -> TestRun:
        return TestRun(self, self._open_records, RunRef(run_id))


P = ParamSpec("P")


class CallerThread(Executor):
    """Runs submitted jobs in the thread that waits for a result."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self._jobs.put(functools.partial(_run, future, functools.partial(fn, *args, **kwargs)))
        return future

    def wait_for(self, awaited: Future[T]) -> T:
        """Run jobs until ``awaited`` is done. Returns its result."""
        awaited.add_done_callback(lambda _: self._jobs.put(None))
        while not awaited.done():
            if (job := self._jobs.get()) is not None:
                job()
        return awaited.result()


def _run(future: Future[T], job: Callable[[], T]) -> None:
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
    method: Callable[Concatenate[TestEngine, P], Coroutine[Any, Any, T]],
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

    def __init__(self, engine: TestEngine) -> None:
        self._engine = engine
        self._thread = CallerThread()
        self.describe_runs = engine.describe_runs
        self.mock_step = engine.mock_step
        self.fail_step = engine.fail_step

    def __enter__(self) -> Self:
        self._engine._link.block = self._wait
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

    signal = _blocking(TestEngine.signal)
    answer = _blocking(TestEngine.answer)
    cancel = _blocking(TestEngine.cancel)
    pause = _blocking(TestEngine.pause)
    resume = _blocking(TestEngine.resume)
    advance = _blocking(TestEngine.advance)
    run_until_idle = _blocking(TestEngine.run_until_idle)
    check_determinism = _blocking(TestEngine.check_determinism)
    _wait_for = _blocking(TestEngine._wait_for)

    @overload
    def ask(self, run: RunFacts, name: str, data: Any = None, *, reply_type: type[T], id: str | None = None) -> T: ...
    @overload
    def ask(self, run: RunFacts, name: str, data: Any = None, *, id: str | None = None) -> Any: ...
    def ask(self, run: RunFacts, name: str, data: Any = None, *, reply_type: Any = Any, id: str | None = None) -> Any:
        return self._wait(self._engine.ask(run, name, data, reply_type=reply_type, id=id))

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
