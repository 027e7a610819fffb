"""Observers of an engine, which count what it has done."""

from collections.abc import Callable, Sequence

import msgspec

from durably.engine.core.calls import Answer
from durably.protocol.text import get_logger

from .runs import UpdateKind
from .subscriptions import RunChange

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


class Observers:
    """All observers of an engine. An error of one is logged, and has no other effect.

    ``changes`` are those of the commit that is being dispatched; ``are_of_calls`` if an observer counts calls.
    ``on_engine_end`` gets the ends of runs that no app knows of: the engine has failed or cancelled them.
    """

    def __init__(self, on_engine_end: Callable[[RunChange], None] | None = None) -> None:
        self._on_engine_end = on_engine_end
        self.changes: list[RunChange] = []
        self.are_of_calls = False
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
            try:
                observer.on_commit(changes, group)
            except Exception:
                _logger.exception("%s could not note a commit", type(observer).__name__)

    def on_call(self, call: EndedCall) -> None:
        for observer in self._of_calls:
            try:
                observer.on_call(call)
            except Exception:
                _logger.exception("%s could not note a call", type(observer).__name__)

    def on_unmatched(self, names: Sequence[str]) -> None:
        for observer in self._all:
            try:
                observer.on_unmatched(names)
            except Exception:
                _logger.exception("%s could not note unmatched events", type(observer).__name__)

    def on_timers(self, lags: Sequence[int]) -> None:
        for observer in self._all:
            try:
                observer.on_timers(lags)
            except Exception:
                _logger.exception("%s could not note timers", type(observer).__name__)
