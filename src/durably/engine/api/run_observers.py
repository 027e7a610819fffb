"""The observers that every engine has: metrics, the log of ends, and alerts."""

import asyncio
import datetime as dt

from durably.engine.model.logs import RunEndLog, log_engine_end
from durably.engine.model.observers import Observers
from durably.engine.model.settings import Clock, EngineSettings

from .alerts.delivery import channels_of
from .alerts.failure_alerts import FailureAlerts
from .alerts.settings import Alerts
from .metrics.catalogue import Metric
from .metrics.instruments import EngineCounters

_MILLISECOND = dt.timedelta(milliseconds=1)


class RunObservers(Observers):
    """The observers of an engine that its settings enable."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(None if settings.log_runs else log_engine_end)
        self.counters = EngineCounters()
        self.add(self.counters)
        if settings.log_runs:
            self.add(RunEndLog())
        self._alerts = [] if settings.alerts is None else _alerts_of(settings.alerts, settings.clock)
        for alerts in self._alerts:
            self.add(alerts)

    def read(self) -> list[Metric]:
        """The metrics of runs and calls, and those of alerts."""
        return [*self.counters.read(), Metric("alerts", [sample for each in self._alerts for sample in each.read()])]

    async def close(self) -> None:
        """Report failed runs that are not reported yet, for at most 2 s."""
        await asyncio.gather(*(alerts.close() for alerts in self._alerts))


def _alerts_of(settings: Alerts, clock: Clock) -> list[FailureAlerts]:
    interval = settings.interval // _MILLISECOND
    return [FailureAlerts(channel, interval, clock) for channel in channels_of(settings)]
