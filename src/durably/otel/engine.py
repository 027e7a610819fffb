"""The spans of an engine: received events, runs, and calls to apps.

The ids of the spans of runs and calls are derived from the runs' ids. Therefore a run needs no open span while it
sleeps for days. Its calls name the span that is reported when the run ends, and each call links to the one before it,
even after a restart.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Tracer, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import Link, SpanContext, SpanKind

from durably.engine.core.calls import Answer, AttemptFailed, CallData, ReportedOps, Unreached
from durably.engine.core.run_state import RunStatus
from durably.engine.model.settings import CallSpan, EndedRun
from durably.protocol.headers import VERSION, TraceContext
from durably.protocol.text import get_logger

from . import spans as names
from .spans import end_span, report, start_span

_SCOPE = "durably.engine"
_MOST_RUNS = 10_000
"""Maximum number of runs whose latest call is kept, for links."""
_MOST_LINKS = 128

_logger = get_logger("durably.engine")

_wanted: ContextVar[tuple[int | None, int] | None] = ContextVar("durably_wanted_ids", default=None)
"""The trace id of a span without a parent, and the id of the next span."""


class _DerivedIds(RandomIdGenerator):
    """Generates the requested ids. Other spans have random ones."""

    def generate_trace_id(self) -> int:
        wanted = _wanted.get()
        return super().generate_trace_id() if wanted is None or wanted[0] is None else wanted[0]

    def generate_span_id(self) -> int:
        wanted = _wanted.get()
        return super().generate_span_id() if wanted is None else wanted[1]


def _derive(size: int, *parts: str | int) -> int:
    """An id of ``size`` bytes that is the same for the same parts."""
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:size]) or 1


def _run_span_id(run_id: str) -> int:
    return _derive(8, "run", run_id)


def _call_span_id(run_id: str, generation: int, execution: int, repetition: int = 0) -> int:
    rest = (execution, repetition) if execution or repetition else ()
    return _derive(8, "call", run_id, generation, *rest)


class OtelEngineTracing:
    """A ``durably.engine.model.settings.EngineTracing``.

    Without a tracer of OpenTelemetry's SDK it reports no spans, but propagates the trace contexts of events.
    """

    def __init__(self, tracer_provider: Any = None, meter_provider: Any = None) -> None:
        self._provider = tracer_provider
        self._tracer: Tracer | None = None
        self._has_warned = False
        self._latest_calls: OrderedDict[str, tuple[int, SpanContext]] = OrderedDict()
        """The latest generation and span, by run."""
        meter = metrics.get_meter(_SCOPE, VERSION, meter_provider)
        self._runs = meter.create_histogram("durably.run.duration", "s", "Duration of runs from trigger to end")

    @contextmanager
    def receiving(self, event_names: Sequence[str], traceparent: str | None) -> Iterator[str | None]:
        tracer = self._find_tracer()
        if tracer is None:
            yield traceparent
            return
        sender = None if traceparent is None else TraceContext.parse(traceparent)
        parent = Context() if sender is None else names.within(names.to_span_context(sender), Context())
        destination, described = names.describe_events([*event_names])
        span = start_span(tracer, f"receive {destination}", context=parent, kind=SpanKind.SERVER, attributes=described)
        try:
            yield names.to_trace(span.get_span_context(), "" if sender is None else sender.baggage) or traceparent
        except Exception as error:
            names.record_error(span, error, with_text=False)
            raise
        finally:
            end_span(span)

    def run_context(self, run_id: str, traceparent: str | None) -> str | None:
        tracer = self._find_tracer()
        return traceparent if tracer is None else str(_run_context(tracer, run_id, traceparent))

    @contextmanager
    def calling(self, data: CallData, *, execution: int = 0, repetition: int = 0) -> Iterator[CallSpan]:
        tracer = self._find_tracer()
        if tracer is None:
            yield _NoSpan(data.traceparent)
            return
        run = _run_context(tracer, data.run_id, data.traceparent)
        generation = data.call.generation
        described: names.Attributes = {
            names.SYSTEM: names.DURABLY,
            names.FUNCTION_ID: names.name(data.function_id),
            names.RUN_ID: data.run_id,
            names.ATTEMPT: data.call.attempt,
            names.GENERATION: generation,
        }
        token = _wanted.set((None, _call_span_id(data.run_id, generation, execution, repetition)))
        try:
            span = start_span(
                tracer,
                f"call {names.name(data.function_id)}",
                context=names.within(names.to_span_context(run), Context()),
                kind=SpanKind.CLIENT,
                attributes=described,
                links=self._links_to_before(data, run, execution),
            )
        finally:
            _wanted.reset(token)
        try:
            yield _Call(span, names.to_trace(span.get_span_context(), run.baggage) or data.traceparent)
        finally:
            end_span(span)
            if (context := span.get_span_context()).is_valid:
                self._latest_calls[data.run_id] = generation, context
                self._latest_calls.move_to_end(data.run_id)
            if len(self._latest_calls) > _MOST_RUNS:
                self._latest_calls.popitem(last=False)

    def run_ended(self, run: EndedRun) -> None:
        self._latest_calls.pop(run.run_id, None)
        described: names.Attributes = {names.SYSTEM: names.DURABLY, names.FUNCTION_ID: names.name(run.function_id)}
        described[names.RUN_STATUS] = run.status.value
        if run.status is not RunStatus.SKIPPED:
            self._runs.record((run.ended_at - run.created_at) / 1000, described)
        tracer = self._find_tracer()
        if tracer is None:
            return
        described = described | {names.RUN_ID: run.run_id, names.APP_ID: names.name(run.app_id)}
        own = _run_context(tracer, run.run_id, run.traceparents[0])
        parent = _parse(run.traceparents[0])
        token = _wanted.set((own.trace_id, own.span_id))
        try:
            span = start_span(
                tracer,
                f"run {names.name(run.function_id)}",
                context=Context() if parent is None else names.within(names.to_span_context(parent), Context()),
                kind=SpanKind.INTERNAL,
                attributes=described,
                links=_links_of(tracer, run),
                start_time=run.created_at * 1_000_000,
            )
        finally:
            _wanted.reset(token)
        if run.status is RunStatus.FAILED:
            names.mark_failed(span, run.error or "Error")
        end_span(span, run.ended_at * 1_000_000)

    def _links_to_before(self, data: CallData, run: TraceContext, execution: int) -> list[Link]:
        """A link to the call that ended last.

        After a restart, or if another process may have made a later call, it links to the call with the generation
        before.
        """
        generation = data.call.generation
        known = self._latest_calls.get(data.run_id)
        if known is not None and (not execution or known[0] >= generation - 1):
            before = known[1]
        elif generation > 1:
            span_id = _call_span_id(data.run_id, generation - 1, execution)
            before = names.to_span_context(TraceContext(run.trace_id, span_id, run.is_sampled))
        else:
            return []
        return [Link(before, {names.LINK: "previous call"})]

    def _find_tracer(self) -> Tracer | None:
        """The tracer; ``None`` while the app has no provider of OpenTelemetry's SDK."""
        if self._tracer is not None:
            return self._tracer
        provider = self._provider or trace.get_tracer_provider()
        tracer = provider.get_tracer(_SCOPE, VERSION)
        if isinstance(tracer, Tracer):
            if not isinstance(tracer.id_generator, _DerivedIds):
                tracer.id_generator = _DerivedIds()
            self._tracer = tracer
            return tracer
        if not self._has_warned and not isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
            self._has_warned = True
            _logger.warning(
                "spans of runs and calls are not reported, because %s is not the TracerProvider of opentelemetry-sdk",
                type(provider).__name__,
            )
        return None


class _NoSpan:
    """A ``CallSpan`` that is not reported."""

    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent

    def answered(self, answer: Answer) -> None: ...


class _Call:
    """A ``CallSpan``."""

    def __init__(self, span: trace.Span, traceparent: str | None) -> None:
        self._span = span
        self.traceparent = traceparent

    def answered(self, answer: Answer) -> None:
        if isinstance(answer, AttemptFailed | Unreached):
            names.mark_failed(self._span, answer.error.name or "Error")
        elif isinstance(answer, ReportedOps):
            failed = next((op.error for op in answer.ops if op.error is not None), None)
            if failed is not None:
                names.mark_failed(self._span, failed.name or "Error")


def _parse(traceparent: str | None) -> TraceContext | None:
    return None if traceparent is None else TraceContext.parse(traceparent)


def _run_context(tracer: Tracer, run_id: str, traceparent: str | None) -> TraceContext:
    """The context of a run's span.

    A run whose event has no trace, such as a schedule's, starts one.
    """
    event = _parse(traceparent)
    trace_id = _derive(16, "trace", run_id) if event is None else event.trace_id
    parent = None if event is None else names.within(names.to_span_context(event), Context())
    try:
        decision = tracer.sampler.should_sample(parent, trace_id, "run", SpanKind.INTERNAL).decision
        is_sampled = decision is Decision.RECORD_AND_SAMPLE
    except Exception as error:
        report(error)
        is_sampled = False
    own = TraceContext(trace_id, _run_span_id(run_id), is_sampled)
    return own if event is None else own._replace(state=event.state, baggage=event.baggage)


def _links_of(tracer: Tracer, run: EndedRun) -> list[Link]:
    """Links to the other events of a batch, and to the run that this one repeats."""
    others = [event for each in run.traceparents[1:_MOST_LINKS] if (event := _parse(each)) is not None]
    links = [Link(names.to_span_context(event), {names.LINK: "event"}) for event in others]
    if run.rerun_of is not None:
        repeated = _run_context(tracer, run.rerun_of, run.traceparents[0])
        links.append(Link(names.to_span_context(repeated), {names.LINK: "rerun of"}))
    return links


def exporting() -> AbstractContextManager[OtelEngineTracing]:
    """The tracing of an engine that exports its spans and metrics over OTLP, for ``--otel``.

    OpenTelemetry's own variables configure it, such as ``OTEL_EXPORTER_OTLP_ENDPOINT`` and ``OTEL_TRACES_SAMPLER``. On
    exit, pending spans and metrics are exported. Raises ``ModuleNotFoundError`` without the exporter's package.
    """
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    @contextmanager
    def export() -> Iterator[OtelEngineTracing]:
        named = OTELResourceDetector().detect().attributes  # OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
        resource = Resource.create({} if SERVICE_NAME in named else {SERVICE_NAME: "durably-engine"})
        tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        tracer_provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        meter_provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        try:
            yield OtelEngineTracing(tracer_provider, meter_provider)
        finally:
            tracer_provider.shutdown()
            meter_provider.shutdown()

    return export()
