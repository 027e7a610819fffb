"""Spans that never disturb what they report.

A sampler or span processor of the app may raise. Then the span is left out, with one line in the log.
"""

from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span

from durably.protocol.text import get_logger

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
    """``span.end``, whatever its processors do. ``end_time`` is nanoseconds."""
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
