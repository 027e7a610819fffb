"""Spans that never break the code they report, and the names of their attributes.

A sampler or span processor of the app may raise. Then the span is omitted, with one line in the log. Attributes are
bounded, and have no users' data. Their names are those of OpenTelemetry's conventions for messaging if these have one,
and begin with ``durably`` otherwise.
"""

from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.util.types import AttributeValue

from durably.protocol.errors import error_message, format_stack
from durably.protocol.headers import TraceContext
from durably.protocol.text import get_logger, printable
from durably.protocol.usage import ModelUsage

SYSTEM = "messaging.system"
OPERATION = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION = "messaging.destination.name"
SUBSCRIPTION = "messaging.destination.subscription.name"
MESSAGE_ID = "messaging.message.id"
BATCH_COUNT = "messaging.batch.message_count"
ERROR_TYPE = "error.type"
APP_ID = "durably.app.id"
FUNCTION_ID = "durably.function.id"
RUN_ID = "durably.run.id"
RUN_STATUS = "durably.run.status"
STEP_ID = "durably.step.id"
STEP_INDEX = "durably.step.index"
ATTEMPT = "durably.attempt"
GENERATION = "durably.call.generation"
LINK = "durably.link"

DURABLY = "durably"
"""The value of ``messaging.system``."""

_MAX_NAME = 200
_MAX_MESSAGE = 1000
_MAX_STACK = 8000

Attributes = dict[str, AttributeValue]


def name(text: str) -> str:
    """An id or name on one line, with at most 200 characters."""
    return printable(text if len(text) <= _MAX_NAME else f"{text[:_MAX_NAME]}…")


def describe_events(names: list[str]) -> tuple[str, Attributes]:
    """The events' part of a span's name, and the attributes of the events."""
    described: Attributes = {SYSTEM: DURABLY}
    if len(names) != 1:
        described[BATCH_COUNT] = len(names)
    if len(set(names)) == 1:
        described[DESTINATION] = name(names[0])
    return (name(names[0]) if len(set(names)) == 1 else "events"), described


def describe_usage(usage: Sequence[ModelUsage]) -> Attributes:
    """The tokens of models, by the conventions for generative AI; the model if it is the only one."""
    described: Attributes = {
        "gen_ai.usage.input_tokens": sum(each.input_tokens for each in usage),
        "gen_ai.usage.output_tokens": sum(each.output_tokens for each in usage),
    }
    models = {each.model for each in usage}
    if len(models) == 1:
        described["gen_ai.request.model"] = name(models.pop())
    return described


def record_error(span: Span, error: BaseException, *, with_text: bool) -> None:
    """Mark a span as failed.

    ``with_text`` adds the error's message and traceback, shortened.
    """
    kind = type(error).__name__
    mark_failed(span, kind)
    if not with_text or not span.is_recording():
        return
    stack = format_stack(error)
    details: Attributes = {
        "exception.type": kind,
        "exception.message": error_message(error)[:_MAX_MESSAGE],
        "exception.stacktrace": stack if len(stack) <= _MAX_STACK else f"…{stack[-_MAX_STACK:]}",
    }
    span.add_event("exception", details)


def mark_failed(span: Span, error_type: str) -> None:
    span.set_attribute(ERROR_TYPE, name(error_type))
    span.set_status(Status(StatusCode.ERROR, name(error_type)))


def to_span_context(context: TraceContext, *, is_remote: bool = True) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if context.is_sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([context.state]) if context.state else None
    return SpanContext(context.trace_id, context.span_id, is_remote, flags, state)


def to_trace(context: SpanContext, baggage: str) -> str | None:
    """The trace context as a string (see ``durably.protocol.headers``).

    ``None`` without OpenTelemetry's SDK, which leaves ids empty.
    """
    if not context.is_valid:
        return None
    state = context.trace_state.to_header() if context.trace_state else ""
    return str(TraceContext(context.trace_id, context.span_id, context.trace_flags.sampled, state, baggage))


def within(parent: SpanContext, base: Any) -> Any:
    """The OpenTelemetry context ``base`` with ``parent`` as its current span."""
    return trace.set_span_in_context(NonRecordingSpan(parent), base)


_logger = get_logger("durably.otel")
_reported: set[str] = set()
"""The kinds of errors that were logged."""


def start_span(tracer: trace.Tracer, name: str, **options: Any) -> Span:
    """``tracer.start_span``; an empty span if that raises."""
    try:
        return tracer.start_span(name, **options)
    except Exception as error:
        report(error)
        return trace.INVALID_SPAN


def end_span(span: Span, end_time: int | None = None) -> None:
    """``span.end``, with errors of its processors logged. ``end_time`` is nanoseconds."""
    try:
        span.end(end_time)
    except Exception as error:
        report(error)


def report(error: Exception) -> None:
    """Log an error of OpenTelemetry's parts, once for each kind."""
    kind = type(error).__name__
    if kind not in _reported:
        _reported.add(kind)
        _logger.error("spans are left out, because a part of OpenTelemetry raised %s", kind, exc_info=error)
