"""The event loop's way to the ledger: what is entered here is carried out by the writer, as one unit each."""

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from durably.engine.errors import EngineClosedError, StaleCallError

from .clock import Clock
from .effects import Effects
from .ledger import Entry, Ledger
from .registry import Registry
from .writer import Writer

T = TypeVar("T")

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

    async def enter(self, work: Callable[[Entry], T]) -> T:
        """Carry ``work`` out, in the writer's thread, and answer with its result once it is committed."""
        result, _ = await self._submit(work)
        return result

    def enter_soon(self, work: Callable[[Entry], object]) -> None:
        """The same, for nobody who waits. What fails is logged."""
        try:
            self._submit(work).add_done_callback(_log_failure)
        except EngineClosedError:
            return

    def _submit(self, work: Callable[[Entry], T]) -> asyncio.Future[tuple[T, Effects]]:
        def unit() -> tuple[T, Effects]:
            entry = Entry(self._ledger, self.registry, self._clock.now())
            result = work(entry)
            return result, entry.finish()

        return self._writer.submit(unit, lambda outcome: self._on_effects(outcome[1]))


def _log_failure(future: asyncio.Future[tuple[object, Effects]]) -> None:
    error = None if future.cancelled() else future.exception()
    if error is not None and not isinstance(error, StaleCallError | EngineClosedError):
        _logger.error("what happened to a run could not be stored: %s", error, exc_info=error)
