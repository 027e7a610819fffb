"""Who is told what an engine does: subscribers of runs, futures of ends, observers that count, and logs."""

import asyncio
import datetime as dt
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import msgspec

from durably.engine.core.calls import Answer
from durably.engine.core.flow.admission import FINISHED_LATE, STARTED_LATE
from durably.engine.core.inputs import WriteMemo
from durably.engine.core.run_state import Call
from durably.protocol.engine_errors import EngineClosedError
from durably.protocol.opcodes import Opcode
from durably.protocol.text import get_logger
from durably.protocol.usage import ModelUsage

from .runs import RunUpdate, UpdateKind, describe_error, describe_failed_memo, to_datetime


class ChangedRun(Protocol):
    """The run of a change. ``created_at`` is milliseconds since the epoch."""

    @property
    def id(self) -> str: ...

    @property
    def function_id(self) -> str: ...

    @property
    def app_id(self) -> str: ...

    @property
    def created_at(self) -> int: ...


class RunChange(msgspec.Struct, frozen=True, gc=False):
    """A change of a run, for subscribers.

    Times are milliseconds since the epoch. ``began`` is the start of a step or run that has ended, and ``ran_for`` the
    microseconds for which the app ran the step, if it reports them. At most one of ``memo``, ``output`` and ``error``
    is set. The first two are JSON; ``failed`` if that is an error. The ends of runs have ``event_id``.
    ``by_engine``: the run failed, and the app has not reported the error. ``usage`` is that of an attempt which has
    ended.
    """

    kind: UpdateKind
    at: int
    run: ChangedRun
    step: str | None = None
    op: Opcode | None = None
    attempt: int | None = None
    due: int | None = None
    memo: bytes | None = None
    output: bytes | None = None
    error: str | None = None
    failed: bool = False
    began: int | None = None
    ran_for: int | None = None
    event_id: str | None = None
    by_engine: bool = False
    usage: tuple[ModelUsage, ...] = ()

    def to_update(self) -> RunUpdate:
        shown = None if self.failed else self.memo if self.memo is not None else self.output
        return RunUpdate(
            kind=self.kind,
            at=to_datetime(self.at),
            run_id=self.run.id,
            function_id=self.run.function_id,
            step=self.step,
            op=self.op,
            attempt=self.attempt,
            due_at=None if self.due is None else to_datetime(self.due),
            output=None if shown is None else msgspec.Raw(shown),
            error=self._describe_error() if self.failed else self.error,
            app_id=self.run.app_id,
            created_at=to_datetime(self.run.created_at),
            event_id=self.event_id,
        )

    def _describe_error(self) -> str:
        return describe_failed_memo(self.memo) if self.memo is not None else describe_error(self.output or b"{}")


def call_repeated(run: ChangedRun, call: Call, at: int, usage: tuple[ModelUsage, ...] = ()) -> RunChange:
    if call.unreached:
        return RunChange(UpdateKind.UNREACHED, at, run, due=call.due, error=call.error)
    return RunChange(
        UpdateKind.RETRYING,
        at,
        run,
        step=call.name or None,
        attempt=call.attempt - 1,
        due=call.due,
        error=call.error,
        usage=usage,
    )


def step_waits(run: ChangedRun, step: str, op: Opcode, until: int, at: int) -> RunChange:
    kind = UpdateKind.SLEEPING if op == Opcode.SLEEP else UpdateKind.WAITING
    return RunChange(kind, at, run, step=step, op=op, due=until)


def step_ended(run: ChangedRun, written: WriteMemo, began: int, ran_for: int | None, at: int) -> RunChange:
    return RunChange(
        UpdateKind.STEP_FAILED if written.failed else UpdateKind.STEP_COMPLETED,
        at,
        run,
        step=written.name,
        op=written.op,
        attempt=written.attempts - 1,
        memo=written.memo,
        failed=written.failed,
        began=began,
        ran_for=ran_for,
        usage=written.usage,
    )


_MOST_UNREAD = 10_000


class Subscriptions:
    """Delivers updates of runs, on the engine's event loop.

    Call ``publish`` only if there are ``listeners``.
    """

    def __init__(self) -> None:
        self.listeners: set[Callable[[RunUpdate], None]] = set()
        self._subscribers: set[_Subscriber] = set()
        self._is_closed = False

    @contextmanager
    def watch(self) -> Iterator[AsyncIterator[RunUpdate]]:
        subscriber = _Subscriber()
        if self._is_closed:
            subscriber.put(None)
        self._subscribers.add(subscriber)
        try:
            with self.listen(subscriber.put):
                yield subscriber
        finally:
            self._subscribers.discard(subscriber)

    @contextmanager
    def listen(self, listener: Callable[[RunUpdate], None]) -> Iterator[None]:
        """Call ``listener`` with each update, at once.

        It must be quick, and must not raise.
        """
        self.listeners.add(listener)
        try:
            yield
        finally:
            self.listeners.discard(listener)

    def publish(self, change: RunChange) -> None:
        update = change.to_update()
        for listener in self.listeners:
            listener(update)

    def close(self) -> None:
        """End the iterations of subscribers."""
        self._is_closed = True
        for subscriber in self._subscribers:
            subscriber.put(None)


class _Subscriber(AsyncIterator[RunUpdate]):
    def __init__(self) -> None:
        self._queue: asyncio.Queue[RunUpdate | None] = asyncio.Queue()

    def put(self, update: RunUpdate | None) -> None:
        if self._queue.qsize() >= _MOST_UNREAD:
            self._queue.get_nowait()
        self._queue.put_nowait(update)

    async def __anext__(self) -> RunUpdate:
        update = await self._queue.get()
        if update is None:
            self._queue.put_nowait(None)
            raise StopAsyncIteration
        return update


class CompletionWaiters:
    """Futures that resolve when a run ends, by the run's key."""

    def __init__(self) -> None:
        self._awaited: dict[int, set[asyncio.Future[None]]] = {}
        self._is_closed = False

    @contextmanager
    def awaiting(self, run_key: int) -> Iterator[asyncio.Future[None]]:
        """A future that resolves when the run ends.

        It fails with ``EngineClosedError`` if the engine closes first.
        """
        if self._is_closed:
            raise EngineClosedError("the engine is closed")
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited.setdefault(run_key, set()).add(ended)
        try:
            yield ended
        finally:
            ended.cancel()
            if (others := self._awaited.get(run_key)) is not None:
                others.discard(ended)
                if not others:
                    del self._awaited[run_key]

    def resolve(self, run_key: int) -> None:
        for ended in self._awaited.pop(run_key, ()):
            if not ended.done():
                ended.set_result(None)

    def close(self) -> None:
        self._is_closed = True
        for awaiting in self._awaited.values():
            for ended in awaiting:
                if not ended.done():
                    ended.set_exception(EngineClosedError("the engine is closed"))


_logger = get_logger("durably.engine")


class Group(msgspec.Struct, frozen=True):
    """Units that shared a commit.

    It has the numbers of committed and failed units, and the seconds that all took together.
    """

    committed: int
    failed: int
    seconds: float


class EndedCall(msgspec.Struct, frozen=True, gc=False):
    """A call that has ended.

    ``delay`` is the time from its due time to its start in milliseconds, ``seconds`` the time that it took.
    """

    function_id: str
    delay: int
    seconds: float
    answer: Answer


class Observer:
    """Is notified of the engine's work, on the engine's event loop.

    The methods must be quick, because they are called while runs are advanced. By default they do nothing.
    """

    def on_commit(self, changes: list[RunChange], group: Group) -> None:
        """A commit has stored ``changes`` of runs; ``group`` are its transactions."""

    def on_call(self, call: EndedCall) -> None:
        """A call has ended, with any answer. The answer is stored afterwards."""

    def on_unmatched(self, names: Sequence[str]) -> None:
        """Events with these names were stored, and match no trigger and no wait."""

    def on_timers(self, lags: Sequence[int]) -> None:
        """Timers have fired. ``lags`` are the milliseconds by which they were late."""


class RunWatches(Observer):
    """Wakes those who wait for a change of one run, at once."""

    def __init__(self) -> None:
        self._watches: dict[str, set[asyncio.Event]] = {}
        self._is_closed = False

    def on_commit(self, changes: list[RunChange], group: Group) -> None:
        for change in changes if self._watches else ():
            for changed in self._watches.get(change.run.id, ()):
                changed.set()

    @contextmanager
    def watching(self, run_id: str) -> Iterator[Callable[[float], Awaitable[bool]]]:
        """A function that waits for a change since its last return, or since now, for some seconds at most.

        It returns whether there was one, and raises ``EngineClosedError`` if the engine closes first.
        """
        changed = asyncio.Event()
        self._watches.setdefault(run_id, set()).add(changed)

        async def wait(seconds: float) -> bool:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await changed.wait()
            if self._is_closed:
                raise EngineClosedError("the engine is closed")
            has_changed = changed.is_set()
            changed.clear()
            return has_changed

        try:
            yield wait
        finally:
            watches = self._watches[run_id]
            watches.discard(changed)
            if not watches:
                del self._watches[run_id]

    def close(self) -> None:
        self._is_closed = True
        for watches in self._watches.values():
            for changed in watches:
                changed.set()


class Observers:
    """All observers of an engine. An error of one is logged, and has no other effect.

    ``on_engine_end`` gets the ends of runs that no app knows of: the engine has failed or cancelled them.
    """

    def __init__(self, on_engine_end: Callable[[RunChange], None] | None = None) -> None:
        self._on_engine_end = on_engine_end
        self.changes: list[RunChange] = []
        """Those of the commit that is being dispatched."""
        self.are_of_calls = False
        """Whether an observer counts calls."""
        self._all: list[Observer] = []
        self._of_commits: list[Observer] = []
        self._of_calls: list[Observer] = []

    def add(self, observer: Observer) -> None:
        self._all.append(observer)
        if type(observer).on_commit is not Observer.on_commit:
            self._of_commits.append(observer)
        if type(observer).on_call is not Observer.on_call:
            self._of_calls.append(observer)
            self.are_of_calls = True

    def on_commit(self, group: Group) -> None:
        """A commit has stored ``changes``."""
        changes, self.changes = self.changes, []
        if self._on_engine_end is not None:
            for change in changes:
                if change.by_engine or change.kind is UpdateKind.RUN_CANCELLED:
                    self._on_engine_end(change)
        for observer in self._of_commits:
            _notify(observer.on_commit, changes, group)

    def on_call(self, call: EndedCall) -> None:
        for observer in self._of_calls:
            _notify(observer.on_call, call)

    def on_unmatched(self, names: Sequence[str]) -> None:
        for observer in self._all:
            _notify(observer.on_unmatched, names)

    def on_timers(self, lags: Sequence[int]) -> None:
        for observer in self._all:
            _notify(observer.on_timers, lags)


def _notify(method: Callable[..., None], *arguments: object) -> None:
    try:
        method(*arguments)
    except Exception:
        _logger.exception("%s has failed", method.__qualname__)


RUN_LOGGER = get_logger("durably.runs")

_LEVELS = {
    UpdateKind.STEP_FAILED: logging.WARNING,
    UpdateKind.RETRYING: logging.WARNING,
    UpdateKind.UNREACHED: logging.WARNING,
    UpdateKind.RUN_FAILED: logging.ERROR,
}
_OUTCOMES = {
    UpdateKind.RUN_COMPLETED: "completed",
    UpdateKind.RUN_FAILED: "failed",
    UpdateKind.RUN_CANCELLED: "cancelled",
    UpdateKind.RUN_SKIPPED: "skipped",
}
_MILLISECOND = dt.timedelta(milliseconds=1)


def level_of(kind: UpdateKind) -> int:
    return _LEVELS.get(kind, logging.INFO)


def fields_of(update: RunUpdate) -> dict[str, Any]:
    """The values of an update's line, without inputs and outputs."""
    fields: dict[str, Any] = {
        "run_id": update.run_id,
        "function_id": update.function_id,
        "app_id": update.app_id,
    }
    for name in ("event_id", "step", "attempt", "due_at", "error"):
        if (value := getattr(update, name)) is not None:
            fields[name] = value
    if (outcome := _OUTCOMES.get(update.kind)) is not None and update.created_at is not None:
        fields["outcome"] = outcome
        fields["duration_ms"] = (update.at - update.created_at) // _MILLISECOND
    return fields


class RunEndLog(Observer):
    """Logs the end of each run, for engines in the app's own processes.

    The values are attributes of the log record, and the message has the ids, the outcome and the duration.
    """

    def on_commit(self, changes: list[RunChange], group: Group) -> None:
        for change in changes:
            level = level_of(change.kind)
            if change.kind in _OUTCOMES and RUN_LOGGER.isEnabledFor(level):
                fields = fields_of(change.to_update())
                RUN_LOGGER.log(
                    level,
                    "%s: run %s of function %s after %d ms%s",
                    change.kind.value,
                    fields["run_id"],
                    fields["function_id"],
                    fields["duration_ms"],
                    f": {fields['error']}" if "error" in fields else "",
                    extra=fields,
                )


def log_engine_end(change: RunChange) -> None:
    """Log a run that the engine has failed, or that ``timeouts`` cancelled.

    No app has logged it.
    """
    update = change.to_update()
    if change.by_engine:
        _logger.error("run %s of function %r failed: %s", update.run_id, update.function_id, update.error)
        return
    reason = (update.error or "").partition(": ")[2]
    if reason in (STARTED_LATE, FINISHED_LATE):
        _logger.warning("run %s of function %r: %s", update.run_id, update.function_id, reason)


SECONDS_BETWEEN_LINES = 10.0
"""Seconds between two lines of a ``SparseLog``."""


class SparseLog:
    """Logs at most one line in ``SECONDS_BETWEEN_LINES``, for frequent events.

    The line has the number of lines dropped since the last one.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger, self._clock = logger, clock
        self._last = -math.inf
        self._left_out = 0

    def log(self, level: int, message: str, *arguments: object) -> None:
        now = self._clock()
        if now - self._last < SECONDS_BETWEEN_LINES:
            self._left_out += 1
            return
        if self._left_out:
            message, arguments = f"{message} (%d like this were not logged)", (*arguments, self._left_out)
        self._last, self._left_out = now, 0
        self._logger.log(level, message, *arguments)
