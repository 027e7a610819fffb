"""Steps of a run, as tests look at them."""

import datetime as dt
from typing import Any

import msgspec

from durably.engine.views import StepStatus, StepView
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Opcode, unwrap_memo


class TestStep(msgspec.Struct, frozen=True, kw_only=True):
    """``id`` is the step's own, of its n-th repetition ``id:n``, as on the wire (n from 1).

    ``output`` is what the step came to, from JSON: what its handler or the invoked function returned, the event or
    signal that was waited for as a dictionary, ``None`` after a sleep and after a timeout. ``error`` is set where the
    step failed. ``attempts`` is how many were made, of any outcome. Times are UTC, on the engine's clock; ``due_at``
    is when a sleep ends, a wait times out, or the next attempt is made.
    """

    __test__ = False

    id: str
    op: Opcode
    status: StepStatus
    attempts: int
    output: Any
    error: ErrorData | None
    created_at: dt.datetime
    ended_at: dt.datetime | None
    due_at: dt.datetime | None

    @property
    def has_ended(self) -> bool:
        return self.ended_at is not None


def to_steps(views: list[StepView]) -> dict[str, TestStep]:
    """By id: finished steps in the order of their memos, then those outstanding."""
    steps = (_to_step(view) for view in views)
    return {step.id: step for step in steps}


def _to_step(view: StepView) -> TestStep:
    memo: Any = None if view.memo is None else msgspec.json.decode(view.memo)
    error = None
    if view.status is StepStatus.FAILED and isinstance(memo, dict):
        memo, error = None, msgspec.convert(memo["error"], ErrorData)
    elif view.error is not None:
        name, _, message = view.error.partition(": ")
        error = ErrorData(name=name, message=message)
    return TestStep(
        id=view.id,
        op=view.op,
        status=view.status,
        attempts=view.attempts,
        output=unwrap_memo(memo),
        error=error,
        created_at=view.created_at,
        ended_at=view.ended_at,
        due_at=view.due_at,
    )
