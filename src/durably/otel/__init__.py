"""OpenTelemetry: one trace from the sender of an event to the steps of its runs.

``instrument(client)`` enables it. ``durably dev --otel`` and ``durably start --otel`` enable it for an engine in its
own process. It needs the extra ``durably[otel]``.
"""

from typing import Any

from durably.app import App
from durably.errors import FunctionConfigInvalidError

from .sdk import OtelAppTracing

__all__ = ["instrument"]


def instrument(
    client: App,
    *,
    tracer_provider: Any = None,
    meter_provider: Any = None,
    record_exceptions: bool = True,
) -> None:
    """Report the client's sends, calls and steps to OpenTelemetry.

    An engine in the same process (``Embedded``, ``TemporalEngine``) also reports its runs and calls.

    - ``tracer_provider``, ``meter_provider``: By default the global ones, which may be set later.
    - ``record_exceptions``: ``False`` omits the messages and tracebacks of errors, and keeps their types.

    Spans have no event data, step inputs or outputs. Raises ``FunctionConfigInvalidError`` if the client is not a
    ``Client``, or is already instrumented.
    """
    if not isinstance(client, App):
        raise FunctionConfigInvalidError(f"durably.otel.instrument takes a durably.Client, not {client!r}")
    if client.tracing is not None:
        raise FunctionConfigInvalidError(f"{client!r} is already instrumented: call durably.otel.instrument once")
    client.tracing = OtelAppTracing(tracer_provider, meter_provider, record_exceptions=record_exceptions)
