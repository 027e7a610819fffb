"""Priority: by how much a run goes ahead in its function's queue.

A run's place in the queue is the time at which it was admitted, less its priority. So a run of priority 120 goes before
all that were admitted in the two minutes before it; and since priorities are bounded, none waits for ever.
"""

import math

from durably.engine.expressions import Expression

from .buckets import Fields

MAX_PRIORITY_SECONDS = 600


def place_of(priority: Expression | None, event: Fields, now: int) -> int:
    """The place of a run admitted ``now``, in milliseconds; the least comes first."""
    return now if priority is None else now - 1000 * priority_of(priority, event)


def priority_of(priority: Expression, event: Fields) -> int:
    """Whole seconds between -600 and 600. What is no number counts as 0; fractions are cut off."""
    value = priority.value(event)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return math.trunc(max(-MAX_PRIORITY_SECONDS, min(value, MAX_PRIORITY_SECONDS)))
