"""Spans in memory, of an app and its engine."""

import datetime as dt
import os
from collections.abc import Callable

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from durably.engine.model.settings import EngineSettings

from ..waiting import async_eventually

SETTINGS = EngineSettings(
    backoff=lambda attempt, jitter: dt.timedelta(milliseconds=20),
    unreached_backoff=lambda failures, jitter: dt.timedelta(milliseconds=20),
    close_grace=dt.timedelta(milliseconds=100),
)


class Spans:
    """Ended spans, and measurements."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meter_provider = MeterProvider([self._reader])
        self._measured: dict[str, dict[tuple[tuple[str, object], ...], int]] = {}

    @property
    def all(self) -> list[ReadableSpan]:
        """In the order of their starts."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        found = self.named(name)
        assert len(found) == 1, (name, [span.name for span in self.all])
        return found[0]

    async def wait_for(self, name: str) -> ReadableSpan:
        """The span of this name, which may end a little after what it is about."""
        await async_eventually(lambda: self.named(name), f"the span {name} has ended")
        return self.one(name)

    def path(self, span: ReadableSpan) -> list[str]:
        """The names of the span and of those that it is within, the outermost first."""
        by_id = {id_of(other): other for other in self.all}
        names = [span.name]
        while span.parent is not None:
            span = by_id[span.parent.span_id]
            names.insert(0, span.name)
        return names

    def measured(self, name: str) -> dict[tuple[tuple[str, object], ...], int]:
        """The counts of a metric, by its attributes."""
        data = self._reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                # Early versions of the SDK read only what has changed since the last reading.
                counts = self._measured.setdefault(metric.name, {})
                for point in metric.data.data_points:
                    key = tuple(sorted((point.attributes or {}).items()))
                    counts[key] = getattr(point, "count", None) or getattr(point, "value", 0)
        return self._measured.get(name, {})


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def trace_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.trace_id


def linked(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("DURABLY_", "INNGEST_", "OTEL_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


Attribute = Callable[[ReadableSpan, str], object]


def attribute(span: ReadableSpan, name: str) -> object:
    return (span.attributes or {}).get(name)
