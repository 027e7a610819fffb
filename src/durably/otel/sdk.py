"""The spans and metrics of an app: its sends, calls and steps."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import metrics, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind

from durably.app import CallInfo
from durably.execution import FoundSteps, Outcome, Raised, StepInfo
from durably.protocol.events import Event
from durably.protocol.headers import VERSION, TraceContext
from durably.protocol.text import get_logger
from durably.protocol.usage import ModelUsage

from . import spans as names
from .spans import end_span, start_span

_SCOPE = "durably"
_logger = get_logger("durably.otel")
_MOST_LINKS = 32
_HEADER = "baggage"


class OtelAppTracing:
    """A ``durably.app.AppTracing``.

    ``None`` for a provider is the global one at the time of the first span.
    """

    def __init__(self, tracer_provider: Any, meter_provider: Any, *, record_exceptions: bool) -> None:
        self._providers = (tracer_provider, meter_provider)
        self._is_checked = tracer_provider is not None
        self.records_text = record_exceptions
        self.tracer = trace.get_tracer(_SCOPE, VERSION, tracer_provider)
        meter = metrics.get_meter(_SCOPE, VERSION, meter_provider)
        self.sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Events sent to the engine")
        self.calls = meter.create_histogram("messaging.process.duration", "s", "Duration of calls of functions")
        self.steps = meter.create_histogram("durably.step.duration", "s", "Duration of executed steps")

    def calling(self, call: CallInfo) -> "_Call":
        if not self._is_checked:
            self._check_provider()
        return _Call(self, call)

    def sending(self, events: Sequence[Event]) -> "_Send":
        if not self._is_checked:
            self._check_provider()
        return _Send(self, [event.name for event in events if isinstance(event, Event)])

    def current_trace(self) -> str | None:
        return names.to_trace(trace.get_current_span().get_span_context(), _current_baggage())

    @contextmanager
    def continuing(self, trace: str) -> Iterator[None]:
        sent = TraceContext.parse(trace)
        token = otel_context.attach(Context() if sent is None else _restore(sent, Context()))
        try:
            yield
        finally:
            otel_context.detach(token)

    def _check_provider(self) -> None:
        """Warn once, at the first span, if no provider receives spans."""
        self._is_checked = True
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            _logger.warning(
                "durably.otel.instrument: no TracerProvider is set, so no traces are reported: call "
                "opentelemetry.trace.set_tracer_provider(…) before the app sends events or is called, or pass "
                "tracer_provider=; with opentelemetry-instrument, check its settings"
            )

    def for_engine(self) -> object:
        """The tracing of an engine in the same process, with the same providers."""
        from .engine import OtelEngineTracing  # needs the extra "engine"

        return OtelEngineTracing(*self._providers)


class _Current:
    """A span that is current until ``leave``, in one task or thread."""

    def __init__(self, span: Span, base: Context | None) -> None:
        self.span = span
        self.began = time.perf_counter()
        self._token = otel_context.attach(trace.set_span_in_context(span, base))

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def leave(self) -> None:
        end_span(self.span)
        # The garbage collector closes a coroutine in another context.
        if not isinstance(sys.exc_info()[1], GeneratorExit):
            otel_context.detach(self._token)


class _Send:
    """A ``durably.app.SendSpan``."""

    def __init__(self, tracing: OtelAppTracing, event_names: list[str]) -> None:
        self._tracing = tracing
        self._names = event_names
        self.traceparent: str | None = None

    def __enter__(self) -> "_Send":
        destination, described = names.describe_events(self._names)
        described |= {names.OPERATION: "send", names.OPERATION_TYPE: "send"}
        self._metric = {key: described[key] for key in (names.SYSTEM, names.DESTINATION) if key in described}
        span = start_span(self._tracing.tracer, f"send {destination}", kind=SpanKind.PRODUCER, attributes=described)
        self._current = _Current(span, None)
        self.traceparent = names.to_trace(span.get_span_context(), _current_baggage())
        return self

    def sent(self, ids: Sequence[str]) -> None:
        if len(ids) == 1:
            self._current.span.set_attribute(names.MESSAGE_ID, names.name(ids[0]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            names.record_error(self._current.span, error, with_text=self._tracing.records_text)
            self._metric[names.ERROR_TYPE] = type(error).__name__
        self._current.leave()
        self._tracing.sent.add(len(self._names), self._metric)


class _Call:
    """A ``durably.app.CallSpan``."""

    def __init__(self, tracing: OtelAppTracing, call: CallInfo) -> None:
        self._tracing = tracing
        self._ids: names.Attributes = {
            names.FUNCTION_ID: names.name(call.function_id),
            names.RUN_ID: names.name(call.run_id),
            names.ATTEMPT: call.attempt,
        }
        self._call = call
        self._error: BaseException | None = None

    def __enter__(self) -> "_Call":
        call = self._call
        base, links = _parent_of(call)
        described: names.Attributes = {
            **self._ids,
            names.SYSTEM: names.DURABLY,
            names.OPERATION: "process",
            names.OPERATION_TYPE: "process",
            names.DESTINATION: names.name(call.event_name),
            names.SUBSCRIPTION: names.name(call.function_id),
            names.APP_ID: names.name(call.app_id),
        }
        if len(call.event_ids) == 1:
            described[names.MESSAGE_ID] = names.name(call.event_ids[0])
        else:
            described[names.BATCH_COUNT] = len(call.event_ids)
        title = f"process {names.name(call.function_id)}"
        span = start_span(
            self._tracing.tracer,
            title,
            context=base,
            kind=SpanKind.CONSUMER,
            attributes=described,
            links=links[:_MOST_LINKS],
        )
        self._current = _Current(span, base)
        return self

    def ended(self, outcome: Outcome) -> None:
        if isinstance(outcome, Raised):
            self._error = outcome.error
            names.record_error(self._current.span, outcome.error, with_text=self._tracing.records_text)
        elif isinstance(outcome, FoundSteps):
            # The span of the step has the error.
            self._error = next((report.error for report in outcome.reports if report.error is not None), None)
            if self._error is not None:
                names.mark_failed(self._current.span, type(self._error).__name__)

    def begin_step(self, step: StepInfo) -> "_Step":
        return _Step(self._tracing, step, self._ids)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._error = error
            names.record_error(self._current.span, error, with_text=self._tracing.records_text)
        self._current.leave()
        self._tracing.calls.record(self._current.seconds, _describe_outcome(self._ids, self._error))


class _Step:
    """A ``durably.execution.StepSpan``."""

    def __init__(self, tracing: OtelAppTracing, step: StepInfo, ids: names.Attributes) -> None:
        self._tracing = tracing
        self._ids = ids
        described = {**ids, names.STEP_ID: names.name(step.id)}
        if step.index:
            described[names.STEP_INDEX] = step.index
        self._current = _Current(start_span(tracing.tracer, f"step {names.name(step.id)}", attributes=described), None)

    def ended(self, error: BaseException | None, *, is_cut: bool, usage: Sequence[ModelUsage]) -> None:
        if usage:
            self._current.span.set_attributes(names.describe_usage(usage))
        if is_cut:
            error = sys.exc_info()[1] or error
        if error is not None:
            names.record_error(self._current.span, error, with_text=self._tracing.records_text)
        self._current.leave()
        self._tracing.steps.record(self._current.seconds, _describe_outcome(self._ids, error))


def _describe_outcome(ids: names.Attributes, error: BaseException | None) -> names.Attributes:
    """The attributes of a measurement. They have low cardinality."""
    described: names.Attributes = {names.SYSTEM: names.DURABLY, names.FUNCTION_ID: ids[names.FUNCTION_ID]}
    return described if error is None else {**described, names.ERROR_TYPE: type(error).__name__}


_baggage = W3CBaggagePropagator()


def _current_baggage() -> str:
    """The header ``baggage`` of the current context.

    ``""`` if the app's propagators send none.
    """
    if _HEADER not in propagate.get_global_textmap().fields:
        return ""
    headers: dict[str, str] = {}
    _baggage.inject(headers)
    return headers.get(_HEADER, "")


def _parent_of(call: CallInfo) -> tuple[Context, list[Link]]:
    """The context that a call continues, and its link to the engine's own trace.

    A call over HTTP continues the framework's span of the request, if that is in the same trace. In process the current
    context is ignored, because it belongs to whichever task has woken the engine.
    """
    base = otel_context.get_current() if call.has_request else Context()
    sent = None if call.traceparent is None else TraceContext.parse(call.traceparent)
    if sent is None:
        return base, []
    if call.is_engines_trace:
        return base, [Link(names.to_span_context(sent), {names.LINK: "engine"})]
    return _restore(sent, base), []


def _restore(sent: TraceContext, base: Context) -> Context:
    """The context with the span and the baggage of a sender, unless its span is in the same trace."""
    if sent.baggage and _HEADER in propagate.get_global_textmap().fields:
        base = _baggage.extract({_HEADER: sent.baggage}, base)
    if trace.get_current_span(base).get_span_context().trace_id == sent.trace_id:
        return base
    context: Context = names.within(names.to_span_context(sent), base)
    return context
