"""When a failed attempt is made again. Pure: the randomness that spreads retries out is passed in."""

import datetime as dt
from collections.abc import Callable

from durably.protocol.limits import BACKOFF_JITTER_SECONDS, BACKOFF_SECONDS, RETRY_AFTER_MAX, RETRY_AFTER_MIN

Backoff = Callable[[int, float], dt.timedelta]
"""From the number of the attempt that failed (from 0) and a random number in [0, 1) to the delay."""


def standard_backoff(attempt: int, jitter: float) -> dt.timedelta:
    """The protocol's schedule, and up to 30 s more."""
    seconds = BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]
    return dt.timedelta(seconds=seconds + jitter * BACKOFF_JITTER_SECONDS)


def dev_backoff(attempt: int, jitter: float) -> dt.timedelta:
    """One second, two, four … thirty: while developing, nobody wants to wait for a retry."""
    return dt.timedelta(seconds=min(2.0**attempt, 30.0) * (1 + jitter / 10))


def unreached_backoff(failures: int, jitter: float) -> dt.timedelta:
    """For calls that never reached the app: half a second at first, at most ten, until it is back."""
    return dt.timedelta(seconds=min(0.5 * 2.0 ** min(failures, 10), 10.0) * (1 + jitter / 4))


def clip_retry_after(wanted: dt.datetime, now: dt.datetime) -> dt.datetime:
    """An app's own choice of time, held to the protocol's one second … 24 hours."""
    return min(max(wanted, now + RETRY_AFTER_MIN), now + RETRY_AFTER_MAX)
