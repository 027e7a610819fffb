"""The clock of leased slots, and the two ends of a lease.

They are read as attributes of this module, so that tests can shorten a lease.
"""

import time

USE_SECONDS = 20.0
"""Seconds after a request for which the process uses the slots of its answer. It renews them after a third of this
time."""
LEASE_SECONDS = 45.0
"""Seconds for which the slots count as used: ``USE_SECONDS``, the heartbeat timeout of calls, and 5 s more. So the
server has given up the calls of an unresponsive process before others get its slots."""

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A clock that also runs while the machine is suspended, if the platform has one."""


def now() -> float:
    """Seconds of a clock that is never set."""
    return time.clock_gettime(_CLOCK)
