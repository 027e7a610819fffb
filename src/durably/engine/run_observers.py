"""The observers that every engine has: metrics, the log of ends, and alerts."""

from durably.engine.alerts.failure_alerts import FailureAlerts
from durably.engine.metrics.catalogue import Metric
from durably.engine.metrics.counters import EngineCounters
from durably.engine.scheduling.observers import Observers
from durably.engine.settings import EngineSettings

from .run_log import RunEndLog


class RunObservers(Observers):
    """The observers of an engine, as its settings ask for them."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__()
        self.counters = EngineCounters()
        self.add(self.counters)
        if settings.log_runs:
            self.add(RunEndLog())
        self._alerts: FailureAlerts | None = None
        if settings.alerts is not None:
            self._alerts = FailureAlerts(settings.alerts, settings.clock)
            self.add(self._alerts)

    def read(self) -> list[Metric]:
        """The metrics of runs and calls, and those of alerts."""
        return [*self.counters.read(), Metric("alerts", []) if self._alerts is None else self._alerts.read()]

    async def close(self) -> None:
        """Report failed runs that are not reported yet, for at most 2 s."""
        if self._alerts is not None:
            await self._alerts.close()
