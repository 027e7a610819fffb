"""The policy of an engine about runs: delays between attempts, and limits.

The jitter of delays is an argument.
"""

import datetime as dt
from collections.abc import Callable

import msgspec

from durably.protocol.limits import (
    BACKOFF_JITTER_SECONDS,
    BACKOFF_SECONDS,
    DEFAULT_LONG_TIMEOUT,
    MAX_DEFERRED,
    MAX_DEFERRED_BYTES,
    MAX_DEPTH,
    MAX_EVENT_NAME_LENGTH,
    MAX_RUN_STATE_BYTES,
    MAX_STEP_OUTPUT_BYTES,
    MAX_STEPS,
    MAX_WAIT,
    RETRY_AFTER_MAX,
    RETRY_AFTER_MIN,
)

Backoff = Callable[[int, float], dt.timedelta]
"""Function of the failed attempt's number (from 0) and a random number in [0, 1). Returns the delay."""


class Policy(msgspec.Struct, frozen=True):
    """The engine's settings that decide about runs. Times are milliseconds.

    - ``retry_delay``: The delay after the given attempt (from 0) failed.
    - ``unreached_delay``: The delay after the given number of consecutive calls (from 0) did not reach the app.
    - ``max_steps``: The maximum number of steps of a run.
    - ``max_depth``: The maximum depth of invocations.
    - ``max_wait``: The longest sleep or wait.
    - ``default_timeout``: The timeout of an invocation or a wait for a signal without one.
    """

    retry_delay: Callable[[int], int]
    unreached_delay: Callable[[int], int]
    max_steps: int = MAX_STEPS
    max_depth: int = MAX_DEPTH
    max_step_output_bytes: int = MAX_STEP_OUTPUT_BYTES
    max_run_state_bytes: int = MAX_RUN_STATE_BYTES
    max_deferred: int = MAX_DEFERRED
    max_deferred_bytes: int = MAX_DEFERRED_BYTES
    max_event_name_length: int = MAX_EVENT_NAME_LENGTH
    max_wait: dt.timedelta = MAX_WAIT
    default_timeout: dt.timedelta = DEFAULT_LONG_TIMEOUT


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


def clip_retry_after(wanted: dt.datetime, now: dt.datetime) -> dt.datetime:
    """The retry time that an app requests, within the protocol's limits.

    The limits are one second and 24 hours from ``now``.
    """
    return min(max(wanted, now + RETRY_AFTER_MIN), now + RETRY_AFTER_MAX)
