"""Metrics in Prometheus' text formats, and as a collector of its client."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import Metric as PrometheusFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from .catalogue import CATALOGUE, FAMILIES, PREFIX, Family, Metric, MetricKind, Sample

_UP = "up"


class EngineCollector(Collector):
    """Collects the metrics that ``read`` returns.

    ``read`` returns ``None`` if no engine answers: then ``durably_up`` is 0, and there are no others. It returns an
    empty list if another process exposes the metrics.
    """

    def __init__(self, read: Callable[[], list[Metric] | None]) -> None:
        self._read = read

    def describe(self) -> Iterator[PrometheusFamily]:
        """All families without samples: no engine need run at the registration."""
        yield _up(None)
        for family in CATALOGUE:
            yield _empty(family)

    def collect(self) -> Iterator[PrometheusFamily]:
        metrics = self._read()
        if metrics == []:
            return
        yield _up(metrics is not None)
        for metric in metrics or ():
            yield _filled(FAMILIES[metric.name], metric.samples)


def write_text(metrics: list[Metric], accept: str | None) -> tuple[bytes, str]:
    """The metrics in the format that ``accept`` requests, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(EngineCollector(lambda: metrics))
    encode, content_type = choose_encoder(accept or "")
    return encode(registry), content_type


def _up(is_up: bool | None) -> PrometheusFamily:
    family = GaugeMetricFamily(PREFIX + _UP, "1 if the engine has answered, otherwise 0.")
    if is_up is not None:
        family.add_metric([], int(is_up))
    return family


def _empty(family: Family) -> PrometheusFamily:
    name, labels = PREFIX + family.name, list(family.labels)
    match family.kind:
        case MetricKind.COUNTER:
            return CounterMetricFamily(name, family.meaning, labels=labels)
        case MetricKind.GAUGE:
            return GaugeMetricFamily(name, family.meaning, labels=labels)
        case MetricKind.HISTOGRAM:
            return HistogramMetricFamily(name, family.meaning, labels=labels)


def _filled(family: Family, samples: Iterable[Sample]) -> PrometheusFamily:
    filled = _empty(family)
    for sample in samples:
        labels = dict(zip(family.labels, sample.labels, strict=True))
        if family.kind is MetricKind.HISTOGRAM:
            _add_histogram(filled, family, labels, sample)
        else:
            filled.add_sample(family.full_name, labels, sample.value)
    return filled


def _add_histogram(filled: PrometheusFamily, family: Family, labels: Mapping[str, str], sample: Sample) -> None:
    bounds = [*map(str, family.buckets), "+Inf"]
    for bound, count in zip(bounds, accumulate(sample.counts), strict=True):
        filled.add_sample(f"{family.full_name}_bucket", {**labels, "le": bound}, count)
    filled.add_sample(f"{family.full_name}_count", dict(labels), sum(sample.counts))
    filled.add_sample(f"{family.full_name}_sum", dict(labels), sample.value)
