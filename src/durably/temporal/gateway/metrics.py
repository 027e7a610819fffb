"""What the gateway tells of itself: requests, how long they take, and how many of them wait.

Measured where the SDK measures its own calls, in the metrics of the process's runtime (``Temporal.serve_metrics``, or
the telemetry of ``Temporal(runtime=…)``); without those it costs next to nothing. Knows routes, and no frameworks.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from temporalio.common import MetricMeter

from durably.temporal.connection import Temporal
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.runtimes import GATEWAY_LATENCY

from .routes import AnyMatch, Match

Labels = tuple[tuple[str, str], ...]

_UNMATCHED: Labels = (("route", "unmatched"), ("workflow_type", ""))


class _Instruments:
    def __init__(self, meter: MetricMeter) -> None:
        self.meter = meter
        self.requests = meter.create_counter("durably_gateway_requests", "Requests that were answered.")
        self.latency = meter.create_histogram_timedelta(
            GATEWAY_LATENCY, "From a request to its answer, or to the begin of its stream.", "duration"
        )
        self.waiting = meter.create_gauge("durably_gateway_waiting", "Long polls and streams that are held open.")
        self.notices = meter.create_counter("durably_gateway_notices", "Descriptions of workflows that do not go on.")
        self.held = Counter[Labels]()


class GatewayMetrics:
    """Made before a fork, counting after it: each process has a meter of its own."""

    def __init__(self, temporal: Temporal) -> None:
        self._temporal = temporal
        self._lock = threading.Lock()
        self._made: _Instruments | None = None

    def count(self, found: AnyMatch | None, status: int, start: float) -> None:
        """A request is answered that came at ``start``, of ``time.perf_counter()``; ``found`` is what it meant."""
        instruments = self._instruments()
        labels = {**dict(_labels(found)), "status": str(int(status))}
        instruments.requests.add(1, labels)
        instruments.latency.record(timedelta(seconds=time.perf_counter() - start), labels)

    def noticed(self, found: Match, reasons: Sequence[str]) -> None:
        """A workflow was described that does not go on for these reasons (``durably.temporal.notices.Reason``)."""
        instruments = self._instruments()
        for reason in reasons:
            labels = {"workflow_type": found.exposure.definition.name, "reason": str(reason)}
            instruments.notices.add(1, labels)

    @contextmanager
    def waiting(self, found: Match) -> Iterator[None]:
        """A request waits meanwhile for what happens to a workflow."""
        instruments, labels = self._instruments(), _labels(found)
        self._hold(instruments, labels, 1)
        try:
            yield
        finally:
            self._hold(instruments, labels, -1)

    def _hold(self, instruments: _Instruments, labels: Labels, more: int) -> None:
        with self._lock:
            instruments.held[labels] += more
            instruments.waiting.set(instruments.held[labels], dict(labels))

    def _instruments(self) -> _Instruments:
        try:
            meter = self._temporal.meter
        except TemporalSettingsError:
            meter = MetricMeter.noop  # Whoever connects is told.
        made = self._made
        if made is None or made.meter is not meter:
            made = self._made = _Instruments(meter)
        return made


def _labels(found: AnyMatch | None) -> Labels:
    if found is None:
        return _UNMATCHED
    return (("route", found.place), ("workflow_type", found.workflow_type))
