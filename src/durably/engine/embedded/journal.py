"""The event loop's way to the ledger: what is entered here is carried out by the writer, as one unit each."""

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from durably.engine.errors import DatabaseLostError, DatabaseUnavailableError, EngineClosedError

from .clock import Clock
from .effects import Effects
from .ledger import Entry, Ledger
from .registry import Registry
from .writer import Writer

T = TypeVar("T")

_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 30.0

_logger = logging.getLogger("durably.engine")


class Journal:
    """``registry`` is replaced when an app syncs. ``on_effects`` gets what each unit wants done once it is committed,
    in the order of the commits."""

    def __init__(
        self, writer: Writer, ledger: Ledger, registry: Registry, clock: Clock, on_effects: Callable[[Effects], None]
    ) -> None:
        self.registry = registry
        self._writer = writer
        self._ledger = ledger
        self._clock = clock
        self._on_effects = on_effects
        self._retrying: set[asyncio.Task[object]] = set()

    async def enter(self, work: Callable[[Entry], T]) -> T:
        """Carry ``work`` out, in the writer's thread, and answer with its result once it is committed.

        Raises what ``work`` does, ``DatabaseUnavailableError`` and ``EngineClosedError``.
        """
        result, _ = await self._submit(work)
        return result

    async def enter_surely(self, work: Callable[[Entry], T]) -> T:
        """The same for what must not be lost: while the database is unavailable, it is tried again."""
        delay = _FIRST_RETRY_SECONDS
        while True:
            try:
                return await self.enter(work)
            except DatabaseUnavailableError as error:
                _logger.error("%s; trying again in %s s", error, delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LAST_RETRY_SECONDS)

    def enter_soon(self, work: Callable[[Entry], object]) -> None:
        """The same, for nobody who waits. What fails is logged."""
        try:
            future = self._submit(work)
        except EngineClosedError:
            return
        self._clock.hold()
        future.add_done_callback(lambda future: self._check(work, future))

    def _check(self, work: Callable[[Entry], object], future: asyncio.Future[tuple[object, Effects]]) -> None:
        error = None if future.cancelled() else future.exception()
        if isinstance(error, DatabaseUnavailableError):
            task = asyncio.get_running_loop().create_task(self.enter_surely(work))
            self._retrying.add(task)
            task.add_done_callback(self._retried)
            return
        if error is not None and not isinstance(error, EngineClosedError | DatabaseLostError):
            _logger.error("what happened to a run could not be stored: %s", error, exc_info=error)
        self._clock.release()

    def _retried(self, task: asyncio.Task[object]) -> None:
        self._retrying.discard(task)
        self._clock.release()

    def close(self) -> None:
        """Give up what is still being tried again."""
        for task in self._retrying:
            task.cancel()

    def _submit(self, work: Callable[[Entry], T]) -> asyncio.Future[tuple[T, Effects]]:
        def unit() -> tuple[T, Effects]:
            entry = Entry(self._ledger, self.registry, self._clock.now())
            result = work(entry)
            return result, entry.finish()

        return self._writer.submit(unit, lambda outcome: self._on_effects(outcome[1]))
