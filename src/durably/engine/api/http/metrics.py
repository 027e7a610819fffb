"""Metrics in Prometheus' formats: a collector of its client, the page ``/metrics``, and a server of that page alone."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as PrometheusFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from durably.engine.api.local import LocalEngine
from durably.engine.api.metrics import CATALOGUE, FAMILIES, PREFIX, Family, Metric, MetricKind, Sample
from durably.protocol.engine_errors import EngineError

from .requests import answer_error, answer_expectation

METRICS_PATH = "/metrics"
_OPENMETRICS = "application/openmetrics-text"
_KEPT_SECONDS = 1.0


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
    family = GaugeMetricFamily(f"{PREFIX}up", "1 if the engine has answered, otherwise 0.")
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


# over HTTP


async def answer_metrics(engine: LocalEngine, request: web.Request) -> web.Response:
    """The engine's metrics, in the format that the request asks for."""
    body, content_type = await _read_page(engine, request.headers.get(hdrs.ACCEPT))
    return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})


async def _read_page(engine: LocalEngine, accept: str | None) -> tuple[bytes, str]:
    metrics = await engine.read_metrics()
    # In a thread, because it takes a tenth of a second with hundreds of functions.
    return await asyncio.to_thread(write_text, metrics, accept)


class MetricsPage:
    """The metrics for clients without a key.

    A page is kept for a second, and one is made at a time, because clients that need no key must not cost much.
    """

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._lock = asyncio.Lock()
        self._pages: dict[str, tuple[float, bytes, str]] = {}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        accept = _OPENMETRICS if _OPENMETRICS in request.headers.get(hdrs.ACCEPT, "") else ""
        now = asyncio.get_running_loop().time
        try:
            async with self._lock:
                made_at, body, content_type = self._pages.get(accept, (now() - 2 * _KEPT_SECONDS, b"", ""))
                if now() - made_at > _KEPT_SECONDS:
                    body, content_type = await _read_page(self._engine, accept)
                    self._pages[accept] = now(), body, content_type
        except EngineError as error:
            return answer_error(request, error)
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})


def create_metrics_page(engine: LocalEngine) -> web.Application:
    """An application that serves only the metrics, without a key.

    The address at which it is served determines who can read them.
    """
    app, page = web.Application(), MetricsPage(engine)
    for method in (hdrs.METH_GET, hdrs.METH_HEAD):
        app.router.add_route(method, METRICS_PATH, page.answer, expect_handler=answer_expectation)
    return app
