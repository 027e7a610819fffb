"""Long-polling for changes, for live pages."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from durably.engine.model.overview import Changes
from durably.engine.model.settings import Timer
from durably.engine.model.subscriptions import Group, Observer, RunChange
from durably.protocol.engine_errors import EngineClosedError, TooManyWaitersError

LONGEST_WAIT_SECONDS = 20.0
MOST_WAITERS = 1_000
_DELAY_SECONDS = 0.1
"""Seconds after a commit, so that the calls it caused have started."""
_INTERVAL_SECONDS = 0.25
_MOST_RUNS = 5_000
_FORGET_SECONDS = 60.0


class Loop(Protocol):
    """The clock and the timers of an event loop."""

    def time(self) -> float: ...

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer: ...


class _Topic:
    """All runs, or one run.

    ``position`` is that of the last published change.
    """

    def __init__(self, position: int) -> None:
        self.position = position
        self.waiters = 0
        self.asked_at = 0.0
        self._changed = asyncio.Event()

    def publish(self, position: int) -> None:
        self.position = position
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Wait for the next publication."""
        changed = self._changed
        self.waiters += 1
        try:
            async with asyncio.timeout(seconds):
                await changed.wait()
        except TimeoutError:
            return
        finally:
            self.waiters -= 1


class ChangeFeed(Observer):
    """Wakes clients that wait for a change, at most four times a second.

    A position is a number that grows with each commit. ``position`` is the first one. It must be higher than all
    positions of earlier engines of the database, such as the time in milliseconds. Changes of single runs are recorded
    only while a client waits for them. A commit costs an addition, and a check of its runs while a client waits for
    one.
    """

    def __init__(self, position: int, loop: Loop) -> None:
        self._loop = loop
        self._now = loop.time
        self._position = position
        self._all = _Topic(position)
        self._runs: dict[str, _Topic] = {}
        self._changed: set[str] = set()
        self._waiters = 0
        self._published_at = 0.0
        self._timer: Timer | None = None
        self._is_closed = False

    def on_commit(self, changes: list[RunChange], group: Group) -> None:
        self._position += 1
        if self._runs:
            for change in changes:
                if change.run.id in self._runs:
                    self._changed.add(change.run.id)
        if self._waiters and self._timer is None:
            self._publish_later()

    def note_run(self, run_id: str) -> None:
        """Record a change of a run that ``on_commit`` does not report."""
        self._position += 1
        if run_id in self._runs:
            self._changed.add(run_id)
        if self._waiters and self._timer is None:
            self._publish_later()

    async def wait(self, after: int | None, run_id: str | None) -> Changes:
        """Wait for a change after a position, at most 20 s. Returns the new position.

        Raises ``EngineClosedError``, ``TooManyWaitersError``.
        """
        until = self._now() + LONGEST_WAIT_SECONDS
        topic = self._topic(run_id)
        self._publish_if_due()
        while after is not None and not self._has_changed(topic, after) and (left := until - self._now()) > 0:
            if self._is_closed:
                raise EngineClosedError("the engine is closed")
            if self._waiters >= MOST_WAITERS:
                raise TooManyWaitersError(f"{MOST_WAITERS} clients already wait for changes: close unused pages")
            self._waiters += 1
            try:
                await topic.wait(left)
            finally:
                self._waiters -= 1
        topic.asked_at = self._now()
        return Changes(position=self._all.position)

    def _has_changed(self, topic: _Topic, after: int) -> bool:
        # A higher position than the last is one of another engine.
        return topic.position > after or after > self._all.position

    def _topic(self, run_id: str | None) -> _Topic:
        if run_id is None:
            return self._all
        topic = self._runs.get(run_id)
        if topic is None:
            self._forget_runs()
            # Earlier changes of the run are unknown, so assume one.
            topic = self._runs[run_id] = _Topic(self._all.position)
            if self._position != self._all.position:
                self._changed.add(run_id)
        return topic

    def _forget_runs(self) -> None:
        """Forget runs that no client waits for any longer."""
        oldest = self._now() - _FORGET_SECONDS
        for run_id, topic in list(self._runs.items()):
            if not topic.waiters and (topic.asked_at < oldest or len(self._runs) >= _MOST_RUNS):
                del self._runs[run_id]
                self._changed.discard(run_id)

    def _publish_later(self) -> None:
        delay = max(_DELAY_SECONDS, self._published_at + _INTERVAL_SECONDS - self._now())
        self._timer = self._loop.call_later(delay, self._publish)

    def _publish_if_due(self) -> None:
        if self._timer is not None or self._all.position == self._position:
            return
        if self._now() - self._published_at >= _INTERVAL_SECONDS:
            self._publish()
        else:
            self._publish_later()

    def _publish(self) -> None:
        self._timer = None
        self._published_at = self._now()
        self._all.publish(self._position)
        changed, self._changed = self._changed, set()
        for run_id in changed:
            self._runs[run_id].publish(self._position)

    def close(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for topic in (self._all, *self._runs.values()):
            topic.publish(topic.position)
