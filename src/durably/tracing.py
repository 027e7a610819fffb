"""``AppTracing``, through which the SDK reports sends, calls and steps as spans.

``durably.otel`` implements it. A client without it reports nothing.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from durably.execution import Outcome, StepTracer
from durably.protocol.events import Event


class CallInfo(msgspec.Struct, frozen=True, gc=False):
    """A call, as its span shows it.

    - ``event_ids``: Several for a batch.
    - ``attempt``: Counts from 0.
    - ``traceparent``: The trace context that the engine sent.
    - ``is_engines_trace``: It belongs to the engine's own trace, which no other service shares.
    - ``has_request``: The call is a request over HTTP, for which the framework may have a span.
    """

    app_id: str
    function_id: str
    run_id: str
    attempt: int
    event_name: str
    event_ids: Sequence[str]
    traceparent: str | None = None
    is_engines_trace: bool = False
    has_request: bool = False


class CallSpan(StepTracer, Protocol):
    """The span of a call, which is current while its function runs."""

    def ended(self, outcome: Outcome) -> None:
        """Record the outcome of the call."""
        ...


class SendSpan(Protocol):
    """The span of a send. ``traceparent`` is its context, for the engine."""

    traceparent: str | None

    def sent(self, ids: Sequence[str]) -> None:
        """Record the ids of the events that the engine has stored."""
        ...


class AppTracing(Protocol):
    """Reports spans of an app. The methods are quick, and raise no errors."""

    def calling(self, call: CallInfo) -> AbstractContextManager[CallSpan]:
        """The span of a call."""
        ...

    def sending(self, events: Sequence[Event]) -> AbstractContextManager[SendSpan]:
        """The span of a send. An exception that leaves the context is recorded."""
        ...

    def for_engine(self) -> object:
        """The ``durably.engine.model.tracing.EngineTracing`` of an engine in the same process."""
        ...
