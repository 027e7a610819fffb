"""Updates of runs for subscribers, and futures that resolve when a run ends."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import msgspec

from durably.engine.core.inputs import WriteMemo
from durably.engine.core.run_state import Call
from durably.protocol.engine_errors import EngineClosedError
from durably.protocol.opcodes import Opcode

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
    ``by_engine``: the run failed, and the app has not reported the error.
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


def call_repeated(run: ChangedRun, call: Call, at: int) -> RunChange:
    if call.unreached:
        return RunChange(UpdateKind.UNREACHED, at, run, due=call.due, error=call.error)
    return RunChange(
        UpdateKind.RETRYING, at, run, step=call.name or None, attempt=call.attempt - 1, due=call.due, error=call.error
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
