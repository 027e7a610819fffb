"""Transactions from the event loop.

They run in the writer's thread, and return after the commit.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from durably.engine.model.observers import Group
from durably.engine.model.registry import Registry
from durably.engine.model.settings import Clock
from durably.engine.sqlite.outbox import Outbox
from durably.engine.sqlite.writer import Writer
from durably.protocol.engine_errors import DatabaseLostError, DatabaseUnavailableError, EngineClosedError
from durably.protocol.text import get_logger

from .runs import finish
from .transaction import Transaction, TransactionContext

T = TypeVar("T")

_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 30.0

_logger = get_logger("durably.engine")


class Transact(Protocol):
    def __call__(self, work: Callable[[Transaction], T], /) -> asyncio.Future[T]:
        """Run ``work`` in the writer thread.

        The future resolves after the commit. It raises the exceptions of ``work``, and ``DatabaseUnavailableError``.
        Raises ``EngineClosedError``.
        """
        ...


class Transactions:
    """Runs transactions. ``registry`` is replaced when an app syncs."""

    def __init__(self, writer: Writer, context: TransactionContext, registry: Registry, clock: Clock) -> None:
        self.registry = registry
        self.transact: Transact = writer.submit
        self._writer = writer
        self._context = context
        self._clock = clock
        self._retrying: set[asyncio.Task[None]] = set()

    def start(self, dispatch: Callable[[Outbox], None], on_group: Callable[[Group], None]) -> None:
        """Start the writer.

        ``dispatch`` gets the outbox of each transaction after its commit, in the order of the commits, and ``on_group``
        is called after the outboxes of a commit.
        """
        self._writer.start(self._execute, dispatch, on_group)

    def _execute(self, work: Callable[[Transaction], T]) -> tuple[T, Outbox]:
        """Run ``work`` in the writer's thread."""
        transaction = Transaction(self._context, self.registry, self._clock.now())
        result = work(transaction)
        return result, finish(transaction)

    async def transact_with_retry(self, work: Callable[[Transaction], T]) -> T:
        """``transact``, repeated while the database is unavailable."""
        delay = _FIRST_RETRY_SECONDS
        while True:
            try:
                return await self.transact(work)
            except DatabaseUnavailableError as error:
                _logger.error("%s; trying again in %s s", error, delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LAST_RETRY_SECONDS)

    def transact_in_background(
        self,
        work: Callable[[Transaction], object],
        otherwise: Callable[[Exception], Callable[[Transaction], object]] | None = None,
    ) -> None:
        """Commit in the background.

        An error is logged, and the transaction ``otherwise(error)`` replaces the failed one.
        """
        try:
            future = self.transact(work)
        except EngineClosedError:
            return
        self._clock.begin_work()

        def check(future: asyncio.Future[object]) -> None:
            if future.cancelled() or future.exception() is None:
                self._clock.end_work()
                return
            task = asyncio.get_running_loop().create_task(self._insist(future, work, otherwise))
            self._retrying.add(task)
            task.add_done_callback(self._retried)

        future.add_done_callback(check)

    async def _insist(
        self,
        failed: asyncio.Future[Any],
        work: Callable[[Transaction], object],
        otherwise: Callable[[Exception], Callable[[Transaction], object]] | None,
    ) -> None:
        try:
            try:
                await failed
            except DatabaseUnavailableError:
                await self.transact_with_retry(work)
        except (EngineClosedError, DatabaseLostError):
            return
        except Exception as error:
            _logger.exception("a change of a run could not be stored")
            if otherwise is not None:
                await self.transact_with_retry(otherwise(error))

    def _retried(self, task: asyncio.Task[None]) -> None:
        self._retrying.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("the failure of a run could not be stored: %s", error)
        self._clock.end_work()

    def close(self) -> None:
        """Cancel the retries."""
        for task in self._retrying:
            task.cancel()
