"""What connects a test engine with clients and functions.

It is the engine interface of clients (see ``durably.engines``), the caller of functions, the mocks of their steps, and
the virtual clock, which stands still until a test advances it, and then jumps from timer to timer.
"""

import asyncio
import contextvars
import heapq
import itertools
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import msgspec

from durably.client import Client
from durably.comm import CommHandler
from durably.embedded.calls import EngineCheckpoints, run_call
from durably.engine.api.interface import OPERATIONS, Engine
from durably.engine.api.operations import Operation
from durably.engine.core.calls import Answer, CallData, Unreached, failed
from durably.engine.model.functions import SyncedFunction
from durably.engine.model.runs import Run
from durably.engine.model.settings import Clock, EngineSettings
from durably.engine.sqlite.engine import SqliteEngine
from durably.engines import EventRelay
from durably.events import ID_SEED_PREFIX
from durably.execution import ReplaceStep, StepRequest
from durably.functions.checkpoints import Checkpoints
from durably.io.background_loop import OnAnyLoop, await_on, get_background_loop, running_loop
from durably.protocol.call import CheckpointRequest
from durably.protocol.errors import ErrorData
from durably.protocol.events import EventReceipt
from durably.protocol.headers import trace_headers
from durably.protocol.opcodes import Opcode


class VirtualClock:
    """An engine's ``Clock``, for one event loop.

    Times are milliseconds since the epoch.
    """

    def __init__(self, now: int) -> None:
        self._now = now
        self._timers: list[tuple[int, int, _Timer]] = []
        self._order = itertools.count()
        self._held = 0
        self._at_rest: asyncio.Future[None] | None = None

    def now(self) -> int:
        return self._now

    def call_at(self, when: int, callback: Callable[[], None]) -> "_Timer":
        timer = _Timer(self, callback)
        if when <= self._now:
            timer.start()
        else:
            heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def begin_work(self) -> None:
        self._held += 1

    def end_work(self) -> None:
        self._held -= 1
        if not self._held and self._at_rest is not None and not self._at_rest.done():
            self._at_rest.set_result(None)

    async def rest(self) -> None:
        """Wait until no work is under way."""
        while self._held:
            if self._at_rest is None or self._at_rest.done():
                self._at_rest = asyncio.get_running_loop().create_future()
            await self._at_rest

    def next_due(self) -> int | None:
        """The time of the next timer."""
        while self._timers and self._timers[0][2].is_over:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    async def advance(self, until: int | None = None) -> bool:
        """Advance to the next timer, and wait until the work that it starts is done.

        If no timer is due by ``until``, advance to ``until`` and return ``False``.
        """
        await self.rest()
        due = self.next_due()
        if due is None or (until is not None and due > until):
            self._now = max(self._now, until or self._now)
            return False
        self._now = due
        while self.next_due() == due:
            heapq.heappop(self._timers)[2].start()
        await self.rest()
        return True


class _Timer:
    """Counts as work from its due time until the event loop has run its callback."""

    def __init__(self, clock: VirtualClock, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._callback = callback
        self._handle: asyncio.Handle | None = None
        self.is_over = False

    def start(self) -> None:
        self._clock.begin_work()
        self._handle = asyncio.get_running_loop().call_soon(self._fire)

    def cancel(self) -> None:
        if not self.is_over and self._handle is not None:
            self._handle.cancel()
            self._clock.end_work()
        self.is_over = True

    def _fire(self) -> None:
        self.is_over = True
        try:
            self._callback()
        finally:
            self._clock.end_work()


T = TypeVar("T")

_inside_call: contextvars.ContextVar[bool] = contextvars.ContextVar("durably_inside_test_call", default=False)


class TestCaller:
    """A ``Caller`` of functions in this process.

    ``step_mocks`` replaces a function's steps. The caller marks the code within calls, which cannot wait until the
    engine is idle. ``handlers``, by app id, may grow.
    """

    __test__ = False  # Otherwise pytest would collect it because of its name.

    def __init__(
        self,
        handlers: Mapping[str, CommHandler],
        settings: EngineSettings,
        checkpoints: Checkpoints,
        step_mocks: Callable[[str], ReplaceStep | None],
    ) -> None:
        self._handlers = handlers
        self._settings = settings
        self._checkpoints = checkpoints
        self._step_mocks = step_mocks

    async def call(self, function: SyncedFunction, data: CallData) -> Answer:
        handler = self._handlers.get(function.app_id)
        if handler is None:
            message = f"this process does not serve the app {function.app_id!r}"
            return Unreached(ErrorData(name="AppUnreachableError", message=message))
        # How long handlers took in earlier tests must not decide in which order steps end.
        data = msgspec.structs.replace(data, parallel_steps=0)
        token = _inside_call.set(True)
        try:
            async with asyncio.timeout(self._settings.call_timeout.total_seconds()):
                replace_step = self._step_mocks(function.id)
                return await run_call(handler, data, self._checkpoints, self._settings.clock, replace_step)
        except TimeoutError:
            return failed("CallTimeoutError", f"the function {function.id!r} did not answer in time")
        finally:
            _inside_call.reset(token)

    async def close(self) -> None:
        """Do nothing: no connection is open."""


def refuse_inside_calls() -> None:
    """Raises ``RuntimeError`` in a function that the test engine is calling."""
    if _inside_call.get():
        raise RuntimeError(
            "a function under test used its test engine, which is not idle before that function ends: "
            "in functions use ctx.step and the client"
        )


class LinkedOperations(Engine):
    """The operations of an open test engine, for the dashboard.

    They may be awaited on any event loop.
    """

    def __init__(self, run: Callable[[Operation, Mapping[str, Any]], Awaitable[Any]]) -> None:
        self._run = run

    async def execute(self, operation: Operation, arguments: Mapping[str, Any]) -> Any:
        return await self._run(operation, arguments)


WaitForRun = Callable[[str, float | None], Coroutine[Any, Any, Run]]
"""Advances the clock until a run has ended. See ``InProcessEngine.wait_for_run``."""


AskRun = Callable[[Mapping[str, Any]], Coroutine[Any, Any, Any]]
"""Executes the operation ``ask_run`` with these arguments, and advances the clock while it waits."""


class TestLink:
    """Connects clients with a test engine on one event loop.

    It is an ``InProcessEngine`` for the clients of ``handlers``, by app id. Its methods may be awaited on any loop.
    """

    __test__ = False

    def __init__(self, wait: WaitForRun, ask: AskRun, *, checkpointing: bool) -> None:
        self.wait = wait
        self.ask = ask
        self.block: Callable[[Coroutine[Any, Any, Any]], Any] = get_background_loop().run
        """Blocks a thread that waits for a run, outside of functions. ``SyncTestEngine`` replaces it."""
        self.handlers: dict[str, CommHandler] = {}
        self._checkpoints = EngineCheckpoints(self._checkpoint, get_background_loop().run, are_default=checkpointing)
        self.operations = LinkedOperations(self._execute)

    async def _execute(self, operation: Operation, arguments: Mapping[str, Any]) -> Any:
        work = operation.execute(self._engine, arguments)
        # A test that advances the clock must not wait for a page that waits for changes, or for a listener.
        waits = operation.name in ("wait_for_changes", "read_messages")
        return await (await_on(self._loop, work) if waits else self._on_loop(work))

    def open(self, engine: SqliteEngine, clock: Clock) -> None:
        """Connect the clients with ``engine``, which runs on this event loop."""
        self._engine, self._clock, self._loop = engine, clock, asyncio.get_running_loop()

    @property
    def checkpoints(self) -> Checkpoints:
        return self._checkpoints

    def add_handler(self, handler: CommHandler) -> None:
        """Accept the handler of the test engine itself, which is the first.

        A later handler is that of an app which is loaded while the engine is open, for example by the first request to
        Django. It would run the functions in threads of its own.
        """
        self.handlers.setdefault(handler.client.app_id, handler)

    async def send_events(
        self, body: bytes, seed: str, timeout: float, sender: str | None, traceparent: str | None
    ) -> EventReceipt:
        return await self._on_loop(self._engine.receive_events(body, sender=sender, **trace_headers(traceparent)))

    @property
    def shared_secrets(self) -> Sequence[bytes]:
        return (b"test engine",)

    async def _checkpoint(self, run_id: str, request: CheckpointRequest) -> None:
        await self._on_loop(self._engine.checkpoint(run_id, request))

    @property
    def keeps_logs(self) -> bool:
        """False, because lines would arrive at no fixed time. Tests read their loggers."""
        return False

    def wait_for_run(self, run_id: str, timeout: float | None) -> OnAnyLoop[Run]:
        """Advance the clock until the run has ended, or by ``timeout``."""
        return _Advancing(self.block, lambda: self._wait_for_run(run_id, timeout))

    async def _wait_for_run(self, run_id: str, timeout: float | None) -> Run:
        return await await_on(self._loop, self.wait(run_id, timeout))

    def execute(self, operation: str, arguments: Mapping[str, Any], timeout: float) -> Awaitable[Any]:
        if operation == "ask_run":
            return _Advancing(self.block, lambda: self._ask(arguments))
        # A seed is random, and the ids of a test are the same each time. One that is made from an id is kept.
        given = dict(arguments)
        if not str(given.get("seed")).startswith(ID_SEED_PREFIX):
            given.pop("seed", None)
        return self._execute(OPERATIONS[operation], given)

    async def _ask(self, arguments: Mapping[str, Any]) -> Any:
        return await await_on(self._loop, self.ask(arguments))

    @property
    def runs_relays(self) -> bool:
        return False

    def add_relay(self, relay: EventRelay) -> None:
        """Do nothing; see ``running_with_server``."""

    def refuse_to_block(self) -> None:
        if running_loop() is self._loop:
            raise RuntimeError(
                "synchronous code (client.send_sync, start_sync, or a sync view) would block the event loop on which "
                "the test engine runs: await client.send, or use the test engine's sync flavour, TestEngine(…).sync()"
            )

    def running_with_server(self) -> AbstractAsyncContextManager[None]:
        """Do nothing: the test starts the engine, not a web server."""
        return nullcontext()

    def expect_start(self) -> None:
        """Do nothing; see ``running_with_server``."""

    def start_with_server(self) -> None:
        """Do nothing; see ``running_with_server``."""

    def start_with_request(self, loop: asyncio.AbstractEventLoop | None = None) -> bool:
        """Do nothing; see ``running_with_server``."""
        return False

    async def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return await await_on(self._loop, self.keep_time_during(work))

    async def keep_time_during(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work during which the clock does not advance."""
        self._clock.begin_work()
        try:
            return await work
        finally:
            self._clock.end_work()


class _Advancing(OnAnyLoop[T]):
    """Work that advances the clock, and calls functions. A caller that blocks on it may have to run them in its thread.

    See ``TestLink.block``.
    """

    def __init__(self, block: Callable[[Coroutine[Any, Any, T]], T], start: Callable[[], Any]) -> None:
        super().__init__(get_background_loop().loop, start)
        self._block = block

    def result(self) -> T:
        return self._block(self._start())


@contextmanager
def linked(link: TestLink, client: Client) -> Iterator[None]:
    """Make ``link`` the client's engine."""
    before = client.in_process
    if isinstance(before, TestLink):
        raise RuntimeError(f"{client!r} is in use by another open test engine; close that one first")
    client.in_process = link
    try:
        yield
    finally:
        client.in_process = before


Handler = Callable[..., Any]


class _Rule(msgspec.Struct, frozen=True):
    """A mock, for ``function_id`` and ``attempts``; ``None`` means any.

    ``make`` returns the handler for a step.
    """

    step_id: str
    function_id: str | None
    attempts: frozenset[int] | None
    make: Callable[[StepRequest], Handler]

    def applies(self, function_id: str, step_id: str, attempt: int) -> bool:
        return (
            self.step_id == step_id
            and self.function_id in (None, function_id)
            and (self.attempts is None or attempt in self.attempts)
        )


class Mocks:
    """The mocks and failures of steps that a test has set.

    The latest rule of a kind wins. A failure wins over a mock, so that one step may have both.
    """

    def __init__(self) -> None:
        self._mocked: list[_Rule] = []
        self._failing: list[_Rule] = []
        self._applied: set[int] = set()  # Rules by identity; no rule is removed.

    def mock(self, step_id: str, function_id: str | None, make: Callable[[StepRequest], Handler]) -> None:
        self._mocked.insert(0, _Rule(step_id, function_id, None, make))

    def fail(
        self, step_id: str, function_id: str | None, attempts: Collection[int] | None, error: BaseException
    ) -> None:
        chosen = None if attempts is None else frozenset(attempts)
        self._failing.insert(0, _Rule(step_id, function_id, chosen, raising(error)))

    def unmet(self) -> list[str]:
        """Calls of ``mock_step`` and ``fail_step`` that no step has used so far.

        Their ids are probably mistyped.
        """
        kinds = (("mock_step", self._mocked), ("fail_step", self._failing))
        return [
            f"{method}({rule.step_id!r})"
            for method, rules in kinds
            for rule in reversed(rules)
            if id(rule) not in self._applied
        ]

    def replace_step(self, function_id: str) -> ReplaceStep | None:
        """The replacement of a function's steps; ``None`` without mocks."""
        if not self._mocked and not self._failing:
            return None

        def replaced(request: StepRequest, attempt: int) -> StepRequest:
            for rule in (*self._failing, *self._mocked):
                if rule.applies(function_id, request.step_id, attempt):
                    self._applied.add(id(rule))
                    return _replace(request, rule.make(request))
            return request

        return replaced


def returning(value: Any) -> Callable[[StepRequest], Handler]:
    def handler(*args: Any, **kwargs: Any) -> Any:
        return value

    return lambda request: handler


def raising(error: BaseException) -> Callable[[StepRequest], Handler]:
    def handler(*args: Any, **kwargs: Any) -> Any:
        raise error.with_traceback(None)

    return lambda request: handler


def calling(function: Handler) -> Callable[[StepRequest], Handler]:
    """A function that creates handlers which call ``function``.

    ``function`` gets the handler's arguments, or the options of a step without a handler as one dictionary.
    """
    return lambda request: function if request.is_run else lambda: function(dict(request.opts or {}))


def _replace(request: StepRequest, handler: Handler) -> StepRequest:
    if request.is_run:
        return msgspec.structs.replace(request, handler=handler)
    encode = request.encode or _to_json
    return StepRequest(request.step_id, Opcode.STEP_RUN, handler=handler, encode=encode, decode=request.decode)


def _to_json(value: Any) -> Any:
    """The engine's answer: the data of an event, another struct, or a pydantic model."""
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    dump = getattr(value, "model_dump", None)
    return value if dump is None else dump(mode="json")
