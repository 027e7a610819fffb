"""Times of steps, attempts and waits, as engines store them.

Times are milliseconds since the epoch, but ``ran_from`` and ``ran_for`` are microseconds: when the app began to execute
a step, and how long that took. ``called_at`` is when the call that reported it was made. An app's clock may be wrong,
so an app's times are moved into the interval in which the engine knows that the app ran.
"""

from collections.abc import Iterable

import msgspec

from durably.protocol.opcodes import Op, Opcode, read_timing

UNREACHED_ERRORS = frozenset({"AppUnreachableError", "FunctionNotServedError", "CallReturnedError"})
"""Names of errors of calls that did not reach the app. Such a call uses no attempt up."""


class MemoTimes(msgspec.Struct, frozen=True, gc=False):
    """Times and topic of a step that has ended."""

    created_at: int
    ended_at: int
    called_at: int | None = None
    ran_from: int | None = None
    ran_for: int | None = None
    topic: str | None = None


class MemoRow(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A finished step without its memo.

    ``is_copied``: a rerun took it over from the original run. ``arguments`` are JSON.
    """

    step_id: str
    name: str
    op: Opcode
    attempts: int
    failed: bool
    times: MemoTimes
    is_copied: bool = False
    arguments: bytes | None = None


class AttemptRow(msgspec.Struct, frozen=True, gc=False):
    """A failed attempt.

    ``error`` is one short line, ``data`` the error as JSON. ``retry_at`` is when the next attempt was or is due.
    """

    step_id: str
    attempt: int
    name: str
    ended_at: int
    error: str
    data: bytes | None
    queued_at: int | None = None
    called_at: int | None = None
    ran_from: int | None = None
    ran_for: int | None = None
    retry_at: int | None = None


class UnfinishedStep(msgspec.Struct, frozen=True, gc=False):
    """A step that had not ended when its run did.

    ``due`` is when its call was due, its sleep would have ended, or its wait would have timed out.
    """

    step_id: str
    name: str
    op: Opcode
    created_at: int
    attempts: int = 0
    due: int | None = None
    topic: str | None = None
    called_at: int | None = None


class OpenWait(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A wait that has not ended.

    ``due`` is when it times out, or a sleep ends. ``topic`` is the awaited event, signal or run.
    """

    created_at: int
    due: int | None = None
    topic: str | None = None
    called_at: int | None = None


class EndedWait(msgspec.Struct, frozen=True, gc=False):
    """A wait that has ended.

    ``topic`` is the awaited event, signal or run, ``called_at`` the time of the call that requested it.
    """

    created_at: int
    topic: str | None
    called_at: int | None


class CallTimes(msgspec.Struct, frozen=True, gc=False):
    """The known times of a call that has reported steps.

    - ``called_at``: Milliseconds since the epoch.
    - ``earliest``: No step began before it, in microseconds.
    - ``shift``: Microseconds to add to the app's times.
    - ``answered``: The generations that have ended.
    - ``is_alone``: The call ran only this step, so the step took as long as the call.
    """

    called_at: int | None = None
    earliest: int = 0
    shift: int = 0
    answered: tuple[int, ...] = ()
    is_alone: bool = False


NO_CALL = CallTimes()
"""For changes of a run that no call causes."""


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
