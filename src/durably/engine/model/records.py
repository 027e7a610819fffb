"""Rows of runs, steps, attempts and waits, as engines store them, and how a change of a run makes them.

They are made from data that the machine and the app have anyway. Only reports of runs read them. Times are milliseconds
since the epoch, but ``ran_from`` and ``ran_for`` are microseconds: when the app began to execute a step, and how long
that took. ``called_at`` is when the call that reported it was made. An app's clock may be wrong, so an app's times are
moved into the interval in which the engine knows that the app ran.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from durably.engine.core.calls import ReportedOps
from durably.engine.core.inputs import Answered, AnsweredTogether, Checkpointed, Input, MakeCall, MakeRequest, WriteMemo
from durably.engine.core.run_state import RunState, RunStatus
from durably.engine.core.transition import excerpt
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Op, Opcode, Timing, hash_step_id, read_timing
from durably.protocol.text import get_logger, keep_ends
from durably.protocol.usage import ModelUsage

UNREACHED_ERRORS = frozenset({"AppUnreachableError", "FunctionNotServedError", "CallReturnedError"})
"""Names of errors of calls that did not reach the app. Such a call uses no attempt up."""
MAX_ARGUMENT_BYTES = 256 * 1024
"""Maximum size of a step's arguments that are kept."""
MAX_ERROR_TEXT = 16 * 1024
"""Number of characters that are kept of the message, and of the traceback, of a failed attempt."""
_MAX_ERROR_BYTES = 128 * 1024
MAX_METADATA_BYTES = 1024 * 1024
"""The limit of one run's metadata."""
MAX_LOG_LINES, MAX_LOG_CHARACTERS = 5000, 2 * 1024 * 1024
"""The limits of the lines of ``ctx.logger`` that are kept of one run."""

_logger = get_logger("durably.engine")
_memo_decoder = msgspec.json.Decoder(dict[str, ErrorData])


class RunRow(msgspec.Struct, frozen=True, gc=False):
    """The row of a stored run.

    ``event_key`` is the event that triggered the run, or the first event of a batch.
    """

    key: int
    id: str
    function_id: str
    app_id: str
    event_key: int
    is_batch: bool
    status: RunStatus
    created_at: int
    started_at: int | None
    rerun_of: str | None


class MemoTimes(msgspec.Struct, frozen=True, gc=False):
    """Times and topic of a step that has ended."""

    created_at: int
    ended_at: int
    called_at: int | None = None
    ran_from: int | None = None
    ran_for: int | None = None
    topic: str | None = None


class StepRow(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A finished step without its memo."""

    step_id: str
    name: str
    op: Opcode
    attempts: int
    failed: bool
    times: MemoTimes
    is_copied: bool = False
    """A rerun took it over from the original run."""
    arguments: bytes | None = None
    """JSON."""
    usage: tuple[ModelUsage, ...] = ()
    """That of the last attempt."""


class UnfinishedStep(msgspec.Struct, frozen=True, gc=False):
    """A step that had not ended when its run did."""

    step_id: str
    name: str
    op: Opcode
    created_at: int
    attempts: int = 0
    due: int | None = None
    """When its call was due, its sleep would have ended, or its wait would have timed out."""
    topic: str | None = None


class AttemptRow(msgspec.Struct, frozen=True, gc=False):
    """A failed attempt."""

    step_id: str
    attempt: int
    name: str
    ended_at: int
    error: str
    """One short line."""
    data: bytes | None
    """The error as JSON."""
    queued_at: int | None = None
    called_at: int | None = None
    ran_from: int | None = None
    ran_for: int | None = None
    retry_at: int | None = None
    """When the next attempt was or is due."""
    usage: tuple[ModelUsage, ...] = ()


class WaitRow(msgspec.Struct, frozen=True, gc=False):
    """The row of a waiting step.

    ``path`` and ``value`` are the key of an event wait in the wait index.
    """

    run_key: int
    step_id: str
    op: Opcode
    topic: str | None = None
    path: str | None = None
    value: str | None = None
    expression: str | None = None
    due: int | None = None
    called_at: int | None = None
    question: bytes | None = None
    """``QuestionInfo`` as JSON, if the step waits for a message."""


class WaitTimes(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Times and topic of a wait or sleep, open or ended."""

    created_at: int
    due: int | None = None
    """When it times out, or a sleep ends."""
    topic: str | None = None
    """The awaited event, signal or run."""
    called_at: int | None = None
    """When the call was made that requested it."""
    question: bytes | None = None
    """Of an open wait for a message: ``QuestionInfo`` as JSON."""


class CallTimes(msgspec.Struct, frozen=True, gc=False):
    """The known times of a call that has reported steps."""

    called_at: int | None = None
    earliest: int = 0
    """No step began before it, in microseconds."""
    shift: int = 0
    """Microseconds to add to the app's times."""
    answered: tuple[int, ...] = ()
    """The generations that have ended."""
    is_alone: bool = False
    """The call ran only this step, so the step took as long as the call."""


_NO_CALL = CallTimes()
"""For changes of a run that no call causes."""


class ChangingRun(Protocol):
    """A run while an input is applied to it."""

    input: Input | None
    """Causes the change, which began at ``began``."""
    called_at: int | None
    """The start time of the call that ended, if known."""
    began: int
    call: CallTimes | None
    """The times of this call, read at first use."""
    before: RunState
    """The state before the change."""
    ended_waits: dict[str, WaitTimes]
    """The waits that the change has ended."""

    @property
    def id(self) -> str: ...


def _call_of(live: ChangingRun, now: int) -> CallTimes:
    """The times of the call that causes the current change of a run."""
    if live.call is None:
        live.call = _read_call_times(live.input, live.called_at, live.began, now)
    return live.call


def _read_call_times(run_input: Input | None, called_at: int | None, began: int, now: int) -> CallTimes:
    """Read the times of a call. ``began`` is when it was due or left the queue."""
    match run_input:
        case Checkpointed(ops=ops):
            shift = clock_shift(ops, began * 1000, _end_of(now))
            if called_at is not None:  # by the app's clock
                called_at = min(max(called_at + shift // 1000, began), now)
            return CallTimes(called_at, began * 1000, shift)
        case Answered():
            answers: Sequence[Answered] = (run_input,)
        case AnsweredTogether():
            answers = run_input.answers
        case _:
            return _NO_CALL
    ops = [op for each in answers if isinstance(each.answer, ReportedOps) for op in each.answer.ops]
    if called_at is not None:
        called_at = min(called_at, now)
    earliest = (began if called_at is None else called_at) * 1000
    generations = tuple(each.generation for each in answers)
    return CallTimes(called_at, earliest, clock_shift(ops, earliest, _end_of(now)), generations, len(ops) == 1)


def memo_times(live: ChangingRun, written: WriteMemo, now: int) -> MemoTimes:
    """Times and topic of a step that has ended now."""
    timing, began = written.timing, live.began
    if type(timing) is Timing and began <= timing.a // 1_000_000 <= (timing.a + timing.b) // 1_000_000 <= now:
        # The common case, on one path: an app in this process, or one with the same clock.
        start = timing.a // 1000
        for call in live.before.calls:
            if call.step_id == written.step_id:
                return MemoTimes(call.due, now, _call_of(live, now).called_at, start, timing.b // 1000)
        called_at = live.called_at
        called_at = None if called_at is None else min(max(called_at, began), start // 1000)
        return MemoTimes(start // 1000, now, called_at, start, timing.b // 1000)
    return _other_times(live, written, now)


def _other_times(live: ChangingRun, written: WriteMemo, now: int) -> MemoTimes:
    wait = live.ended_waits.get(written.step_id)
    if wait is not None:
        return MemoTimes(wait.created_at, now, wait.called_at, topic=wait.topic)
    call = _call_of(live, now)
    if written.op is not Opcode.STEP_RUN:
        return MemoTimes(live.began, now, call.called_at)
    ran_from, ran_for = _ran(call, written.timing, now)
    created_at = _planned_at(live, written.step_id)
    if created_at is None:
        created_at = live.began if ran_from is None else ran_from // 1000
    return MemoTimes(created_at, now, call.called_at, ran_from, ran_for)


def _ran(call: CallTimes, timing: Any, now: int) -> tuple[int | None, int | None]:
    """The start and the duration of a step that the app has executed.

    They are the app's. Otherwise they are those of the call, if the call was for that step alone.
    """
    known = read_timing(timing)
    if known is not None:
        return step_times(known.a // 1000 + call.shift, known.b // 1000, call.earliest, _end_of(now))
    if call.is_alone and call.called_at is not None:
        return call.called_at * 1000, (now - call.called_at) * 1000
    return None, None


def _end_of(now: int) -> int:
    """The last microsecond of a millisecond."""
    return now * 1000 + 999


def _planned_at(live: ChangingRun, step_id: str) -> int | None:
    """The time at which the call that targets a step was due.

    ``None`` if the step was executed as soon as it was found.
    """
    for call in live.before.calls:
        if call.step_id == step_id:
            return call.due
    return None


def arguments_to_keep(live: ChangingRun, written: WriteMemo) -> bytes | None:
    """The step's arguments as JSON, unless they are too large."""
    arguments = msgspec.json.encode(written.arguments)
    if len(arguments) <= MAX_ARGUMENT_BYTES:
        return arguments
    _logger.warning(
        "run %s: the arguments of step %r are not kept, since they have %d bytes; at most %d are kept",
        live.id,
        written.name,
        len(arguments),
        MAX_ARGUMENT_BYTES,
    )
    return None


def failed_call_row(live: ChangingRun, command: MakeCall, now: int) -> AttemptRow | None:
    """The attempt that a call repeats, if any."""
    failed, call = command.failed, command.call
    if failed is None:
        return None
    ran_from, ran_for = _ran(_call_of(live, now), failed.timing, now)
    return AttemptRow(
        step_id=failed.step_id,
        attempt=call.attempt if call.unreached else call.attempt - 1,
        name=call.name,
        ended_at=now,
        error=call.error,
        data=encode_bounded(failed.error),
        queued_at=_planned_at(live, failed.step_id),
        called_at=live.called_at,
        ran_from=ran_from,
        ran_for=ran_for,
        retry_at=call.due,
        usage=failed.usage,
    )


def failed_request_row(command: MakeRequest, now: int) -> AttemptRow | None:
    """The attempt that a request of the engine repeats, if any."""
    if command.failed is None:
        return None
    error = _memo_decoder.decode(command.failed).get("error") or ErrorData()
    return AttemptRow(
        step_id=command.step_id,
        attempt=command.attempt - 1,
        name=command.name,
        ended_at=now,
        error=excerpt(error),
        data=encode_bounded(error),
        retry_at=command.scheduled_at,
    )


def encode_bounded(error: ErrorData) -> bytes:
    """An error as JSON, with the beginning and the end of a long message or traceback."""
    bounded = msgspec.structs.replace(error, message=_shorten(error.message), stack=_shorten(error.stack))
    encoded = msgspec.json.encode(bounded)
    if len(encoded) <= _MAX_ERROR_BYTES:
        return encoded
    return msgspec.json.encode(msgspec.structs.replace(bounded, cause=None, data=None))


def _shorten(text: str | None) -> str | None:
    return None if text is None else keep_ends(text, MAX_ERROR_TEXT, "not kept")


def unfinished_steps(waits: Mapping[str, WaitTimes], live: ChangingRun, now: int) -> list[UnfinishedStep]:
    """The steps that were under way when the run ended.

    ``waits`` are those of the run before its end.
    """
    before, answered = live.before, _call_of(live, now).answered
    left = [
        UnfinishedStep(
            hash_step_id(call.name) if call.is_discovery else call.step_id,
            call.name,
            Opcode.STEP_RUN,
            call.due,
            attempts=call.attempt,
            due=call.due,
        )
        for call in before.calls
        if call.name and call.generation not in answered
    ]
    for wait in before.waits:
        row = waits.get(wait.step_id)
        if row is not None:
            attempts = wait.attempt + 1
            left.append(UnfinishedStep(wait.step_id, wait.name, wait.op, row.created_at, attempts, row.due, row.topic))
    return left


def clock_shift(ops: Iterable[Op], earliest: int, latest: int) -> int:
    """The microseconds to add to the times of an app.

    The times then lie between ``earliest`` and ``latest``. The result is 0 for an app whose clock agrees with the
    engine's.
    """
    starts, ends = [], []
    for op in ops:
        timing = read_timing(op.timing)
        if timing is not None:
            starts.append(timing.a // 1000)
            ends.append((timing.a + timing.b) // 1000)
    if not starts:
        return 0
    if max(ends) > latest:
        return latest - max(ends)
    return max(0, earliest - min(starts))


def step_times(start: int, duration: int, earliest: int, latest: int) -> tuple[int, int]:
    """Start and duration of a step, within ``earliest`` and ``latest``."""
    start = min(max(start, earliest), latest)
    return start, min(max(duration, 0), latest - start)
