"""An observer of failed runs that reports them in the background."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from durably.engine.api.metrics.catalogue import Sample
from durably.engine.model.observers import Group, Observer
from durably.engine.model.runs import UpdateKind
from durably.engine.model.settings import Clock, Timer
from durably.engine.model.subscriptions import RunChange
from durably.protocol.text import get_logger

from .alert import Alert, FailureGroups, clip_error
from .delivery import Channel, DeliveryError

_RETRY_SECONDS = (1.0, 5.0, 30.0)
_CLOSE_SECONDS = 2.0

_logger = get_logger("durably.engine.api.alerts")


class FailureAlerts(Observer):
    """Reports failed runs through one channel, in the background.

    A slow channel delays neither runs nor other channels. A failed delivery is repeated three times. Later failures are
    grouped in that time, and a lost alert is logged. ``interval`` is in milliseconds.
    """

    def __init__(
        self, channel: Channel, interval: int, clock: Clock, retry_seconds: Sequence[float] = _RETRY_SECONDS
    ) -> None:
        self._clock = clock
        self._channel = channel
        self._retry_seconds = retry_seconds
        self._groups = FailureGroups(interval)
        self._timer: Timer | None = None
        self._sending: asyncio.Task[None] | None = None
        self._outcomes = Counter(sent=0, failed=0)
        self._is_closing = False

    def on_commit(self, changes: list[RunChange], group: Group) -> None:
        failed = [change for change in changes if change.kind is UpdateKind.RUN_FAILED]
        for change in failed:
            function_id, groups = change.run.function_id, self._groups
            error = clip_error(change.to_update().error or "") if groups.wants_error(function_id) else ""
            groups.add(function_id, change.run.id, error, change.at)
        if failed:
            self._plan()

    def read(self) -> list[Sample]:
        """The number of alerts by outcome."""
        return [Sample((self._channel.name, outcome), count) for outcome, count in self._outcomes.items()]

    async def close(self) -> None:
        """Report the remaining failures, for at most 2 s."""
        self._is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        sending = [] if self._sending is None else [self._sending]
        if (alert := self._groups.take_all(self._clock.now())) is not None:
            sending.append(asyncio.get_running_loop().create_task(self._deliver(alert)))
        if sending:
            _, late = await asyncio.wait(sending, timeout=_CLOSE_SECONDS)
            for task in late:
                task.cancel()
            if late:
                _logger.error("the engine has closed before its last alert about failed runs was delivered")

    def _plan(self) -> None:
        """Plan the next alert, unless one is being delivered."""
        next_at = self._groups.next_at()
        if next_at is None or self._sending is not None or self._is_closing:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.call_at(next_at, self._report)

    def _report(self) -> None:
        self._timer = None
        alert = self._groups.take(self._clock.now())
        if alert is None:  # Timers may fire early.
            self._plan()
        elif self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._deliver(alert))
            self._sending.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("an alert failed in the engine", exc_info=error)
        self._plan()

    async def _deliver(self, alert: Alert) -> None:
        for delay in (*self._retry_seconds, None):
            try:
                await self._channel.deliver(alert)
            except DeliveryError as error:
                if delay is None or self._is_closing:
                    self._outcomes["failed"] += 1
                    _logger.error("an alert about %d failed runs was lost: %s", alert.count, error)
                    return
                _logger.warning("an alert was not delivered: %s; trying again in %s s", error, delay)
                await asyncio.sleep(delay)
            else:
                self._outcomes["sent"] += 1
                return
