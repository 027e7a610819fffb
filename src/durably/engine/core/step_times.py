"""Times of steps, as apps report them, on the engine's clock.

Times are microseconds since the epoch. An app's clock may be wrong, so an app's times are moved into the interval in
which the engine knows that the app ran.
"""

from collections.abc import Iterable

import msgspec

from durably.protocol.opcodes import Op, read_timing


class CallTimes(msgspec.Struct, frozen=True, gc=False):
    """The times of a call that has reported steps, as far as they are known.

    ``called_at`` is milliseconds since the epoch, ``earliest`` and ``shift`` are microseconds: no step began before
    ``earliest``, and ``shift`` is to be added to the app's times. ``answered`` are the generations that have ended.
    ``is_alone``: it reported one step, so that this step took the time of the call.
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

    With them, the times lie between ``earliest`` and ``latest``. They are 0 for an app whose clock agrees with the
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
