"""What the replay of one history gave."""

from dataclasses import dataclass
from enum import StrEnum

from .faults import Fault


class Outcome(StrEnum):
    """``NONDETERMINISTIC``: the code does not do what the history has. ``ERROR``: the code raised, or blocked.
    ``UNKNOWN_TYPE``: the app has no such workflow. ``SKIPPED``: no workflow task has been completed yet."""

    REPLAYED = "replayed"
    SKIPPED = "skipped"
    NONDETERMINISTIC = "nondeterministic"
    ERROR = "error"
    UNKNOWN_TYPE = "unknown_type"


_FINE = (Outcome.REPLAYED, Outcome.SKIPPED)


@dataclass(frozen=True, kw_only=True)
class ReplayResult:
    """``source`` is the file of a stored history. ``message`` is the error's text, empty if there is none.

    ``event_id``, ``event`` and ``instead`` say which event of the history is at fault, and what the code does instead.
    """

    workflow_type: str
    workflow_id: str
    run_id: str
    outcome: Outcome
    source: str | None = None
    message: str = ""
    event_id: int | None = None
    event: str | None = None
    instead: str | None = None

    @property
    def failed(self) -> bool:
        return self.outcome not in _FINE

    def describe(self) -> str:
        """One line: the workflow, the event at fault, what the code does instead, the error."""
        where = f"{self.workflow_type} {self.workflow_id} (run {self.run_id}"
        parts = [f"{where}, {self.source})" if self.source else f"{where})"]
        if self.event_id is not None:
            parts.append(f"event {self.event_id} {self.event}")
        if self.instead is not None:
            parts.append(f"the code {self.instead} instead")
        return ": ".join([*parts, self.message] if self.message else parts)


def make_result(
    workflow_type: str,
    workflow_id: str,
    run_id: str,
    outcome: Outcome,
    *,
    source: str | None = None,
    message: str = "",
    fault: Fault | None = None,
) -> ReplayResult:
    fault = fault or Fault(None, None, None)
    return ReplayResult(
        workflow_type=workflow_type,
        workflow_id=workflow_id,
        run_id=run_id,
        outcome=outcome,
        source=source,
        message=message,
        event_id=fault.event_id,
        event=fault.event,
        instead=fault.instead,
    )
