"""``EngineTracing``, through which an engine reports what it does as spans.

``durably.otel`` implements it. An engine without it only passes the trace contexts of events to the calls of their
runs.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import msgspec

from durably.engine.core.calls import Answer, CallData
from durably.engine.core.run_state import RunStatus


class EndedRun(msgspec.Struct, frozen=True, gc=False):
    """A run that has ended. Times are milliseconds since the epoch.

    ``traceparents`` are the trace contexts of its events; ``error`` is the name of the error with which it failed.
    """

    run_id: str
    function_id: str
    app_id: str
    status: RunStatus
    created_at: int
    ended_at: int
    traceparents: tuple[str | None, ...]
    rerun_of: str | None = None
    error: str | None = None


class CallSpan(Protocol):
    """The span of one call to an app. ``traceparent`` is its context, for the app."""

    traceparent: str | None

    def answered(self, answer: Answer) -> None:
        """Record the result of the call."""
        ...


@runtime_checkable
class EngineTracing(Protocol):
    """Reports spans of an engine. The methods are quick, and raise no errors."""

    def receiving(self, names: Sequence[str], traceparent: str | None) -> AbstractContextManager[str | None]:
        """The span of a request that stores events, with their names.

        The value is the trace context to store with the events.
        """
        ...

    def run_context(self, run_id: str, traceparent: str | None) -> str | None:
        """The trace context of a run, from its event's. Called in any thread."""
        ...

    def calling(self, data: CallData, *, execution: int = 0, repetition: int = 0) -> AbstractContextManager[CallSpan]:
        """The span of a call.

        An engine of several processes passes ``execution``, the number of an execution of the run, because another
        execution has calls of the same generations. ``repetition`` counts repetitions of a call with the same
        generation.
        """
        ...

    def run_ended(self, run: EndedRun) -> None:
        """Report the span of a run."""
        ...


def trace_of_run(tracing: EngineTracing | None, run_id: str, traceparent: str | None) -> str | None:
    """The trace context that a run's events and invocations continue.

    ``traceparent`` is that of the run's event.
    """
    return traceparent if tracing is None else tracing.run_context(run_id, traceparent)
