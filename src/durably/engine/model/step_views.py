"""Views of a run's steps and calls, from its state and what engines store.

Pure.
"""

from collections.abc import Callable

import msgspec

from durably.engine.core.calls import job_id_of
from durably.engine.core.ops import REQUESTS
from durably.engine.core.run_state import Call, RunState, Wait
from durably.protocol.opcodes import Opcode, hash_step_id

from .rows import OpenWait
from .runs import RunCall, RunWait, StepStatus, StepView, describe_failed_memo, to_datetime, to_optional_datetime


def finished_step(
    step_id: str, name: str, op: str, attempts: int, failed: int, created_at: int, ended_at: int, memo: bytes
) -> StepView:
    return StepView(
        id=name,
        hashed_id=step_id,
        op=Opcode(op),
        status=StepStatus.FAILED if failed else StepStatus.COMPLETED,
        attempts=attempts,
        created_at=to_datetime(created_at),
        ended_at=to_datetime(ended_at),
        due_at=None,
        memo=msgspec.Raw(memo),
        error=describe_failed_memo(memo) if failed else None,
    )


def call_status(call: Call, in_flight: bool) -> StepStatus:
    """The status of the step that a call is for."""
    idle = StepStatus.RETRYING if call.attempt else StepStatus.PLANNED
    return StepStatus.RUNNING if in_flight else idle


def called_step_id(call: Call) -> str:
    """The hashed id of the step that a call is for.

    It may be a step that failed in a call that discovered.
    """
    return hash_step_id(call.name) if call.is_discovery else call.step_id


def wait_status(wait: Wait) -> StepStatus:
    if wait.op in REQUESTS:
        return StepStatus.RUNNING
    return StepStatus.SLEEPING if wait.op == Opcode.SLEEP else StepStatus.WAITING


def called_step(call: Call, in_flight: bool) -> StepView:
    """A step that is planned, under way or waiting for a retry."""
    return StepView(
        id=call.name,
        hashed_id=called_step_id(call),
        op=Opcode.STEP_RUN,
        status=call_status(call, in_flight),
        attempts=call.attempt + in_flight,
        created_at=to_datetime(call.due),
        ended_at=None,
        due_at=to_datetime(call.due),
        memo=None,
        error=call.error or None,
    )


def waiting_step(wait: Wait, row: OpenWait) -> StepView:
    return StepView(
        id=wait.name,
        hashed_id=wait.step_id,
        op=wait.op,
        status=wait_status(wait),
        attempts=wait.attempt + 1,
        created_at=to_datetime(row.created_at),
        ended_at=None,
        due_at=to_optional_datetime(row.due),
        memo=None,
        error=None,
    )


def call_views(run_id: str, state: RunState, is_under_way: Callable[[int], bool]) -> list[RunCall]:
    """The calls of a run, the earliest first. ``is_under_way`` takes a generation."""
    return [
        RunCall(
            job_id=job_id_of(run_id, call.step_id),
            step_id=call.step_id,
            step_name=call.name or None,
            generation=call.generation,
            attempt=call.attempt,
            due_at=to_datetime(call.due),
            in_flight=is_under_way(call.generation),
            error=call.error or None,
            position=position,
        )
        for position, call in enumerate(sorted(state.calls, key=lambda call: call.due))
    ]


class AwaitedStep(msgspec.Struct, frozen=True):
    """A wait of a run, by its step's hashed id."""

    step_id: str
    due: int | None
    topic: str | None


def has_call(state: RunState) -> bool:
    """Whether the run has a request, or a call that is not a retry."""
    return any(not call.error for call in state.calls) or any(wait.op in REQUESTS for wait in state.waits)


def run_wait(state: RunState, earliest: AwaitedStep | None) -> RunWait | None:
    """The earliest sleep, wait or retry of a run.

    ``None`` if the run has another call or request. ``earliest`` is the wait that is due first.
    """
    if has_call(state):
        return None
    retry = min(state.calls, key=lambda call: call.due, default=None)
    if retry is not None and (earliest is None or earliest.due is None or retry.due <= earliest.due):
        due_at = to_datetime(retry.due)
        return RunWait(kind=StepStatus.RETRYING, step=retry.name, due_at=due_at, error=retry.error)
    if earliest is None:
        return None
    wait = next((wait for wait in state.waits if wait.step_id == earliest.step_id), None)
    if wait is None:
        return None
    return RunWait(
        kind=StepStatus.SLEEPING if wait.op is Opcode.SLEEP else StepStatus.WAITING,
        step=wait.name,
        due_at=to_optional_datetime(earliest.due),
        awaited=earliest.topic if wait.op in (Opcode.WAIT_FOR_EVENT, Opcode.WAIT_FOR_SIGNAL) else None,
    )
