"""Backoff: the delays before a failed attempt is repeated, and before a call that did not reach its app is.

``EngineSettings.backoff`` and ``unreached_backoff`` replace them. ``machine`` decides whether there is another attempt.
"""

import datetime as dt
from collections.abc import Callable

from durably.protocol.durations import parse_retry_after
from durably.protocol.limits import BACKOFF_JITTER_SECONDS, BACKOFF_SECONDS, RETRY_AFTER_MAX, RETRY_AFTER_MIN

Backoff = Callable[[int, float], dt.timedelta]
"""Function of the failed attempt's number (from 0) and a random number in [0, 1). Returns the delay."""


def standard_backoff(attempt: int, jitter: float) -> dt.timedelta:
    """The protocol's schedule, plus up to 30 s."""
    seconds = BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]
    return dt.timedelta(seconds=seconds + jitter * BACKOFF_JITTER_SECONDS)


def dev_backoff(attempt: int, jitter: float) -> dt.timedelta:
    """One second, two, four, and so on up to thirty: short delays for development."""
    return dt.timedelta(seconds=min(2.0**attempt, 30.0) * (1 + jitter / 10))


def unreached_backoff(failures: int, jitter: float) -> dt.timedelta:
    """The delay after a call that did not reach the app.

    It is half a second at first and ten seconds at most, plus up to a quarter for the jitter.
    """
    return dt.timedelta(seconds=min(0.5 * 2.0 ** min(failures, 10), 10.0) * (1 + jitter / 4))


def read_retry_after(text: str | None, now: int) -> int | None:
    """The retry time that an app requests, within the protocol's limits: one second and 24 hours from ``now``.

    ``None`` if there is none. Both times are milliseconds since the epoch.
    """
    at = dt.datetime.fromtimestamp(now / 1000, dt.UTC)
    wanted = parse_retry_after(text, at) if text else None
    if wanted is None:
        return None
    return round(min(max(wanted, at + RETRY_AFTER_MIN), at + RETRY_AFTER_MAX).timestamp() * 1000)
