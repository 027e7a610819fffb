"""Groups failures of functions into few alerts. Pure; times are in milliseconds."""

from typing import Final

import msgspec

SPACING_MILLISECONDS: Final = 10_000
"""Between two messages, however many functions fail."""
MAX_FUNCTIONS: Final = 100
"""Functions that one alert names. Failures of others are counted together."""


class FunctionFailures(msgspec.Struct, frozen=True):
    """Failed runs of one function. ``run_id`` and ``error`` are those of the first."""

    function_id: str
    count: int
    run_id: str
    error: str
    first_at: int
    last_at: int


class Alert(msgspec.Struct, frozen=True):
    """Failures that are reported together.

    ``others`` is the number of failed runs of functions that it does not name.
    """

    failures: tuple[FunctionFailures, ...]
    others: int = 0

    @property
    def count(self) -> int:
        return sum(each.count for each in self.failures) + self.others


class FailureGroups:
    """Collects failures until they are to be reported.

    A function's first failure is to be reported at once, and further ones ``interval`` after the last report of the
    function. ``spacing`` is the least time between two alerts. It keeps at most ``MAX_FUNCTIONS`` functions.
    """

    def __init__(self, interval: int, spacing: int = SPACING_MILLISECONDS) -> None:
        self._interval = interval
        self._spacing = min(spacing, interval)
        self._waiting: dict[str, FunctionFailures] = {}
        self._quiet_until: dict[str, int] = {}
        self._others = 0
        self._may_send_at = 0

    def wants_error(self, function_id: str) -> bool:
        """Whether ``add`` uses the error of a failure: it is the first of its group."""
        return function_id not in self._waiting and len(self._waiting) < MAX_FUNCTIONS

    def add(self, function_id: str, run_id: str, error: str, at: int) -> None:
        known = self._waiting.get(function_id)
        if known is not None:
            self._waiting[function_id] = msgspec.structs.replace(known, count=known.count + 1, last_at=at)
        elif len(self._waiting) < MAX_FUNCTIONS:
            self._waiting[function_id] = FunctionFailures(function_id, 1, run_id, error, at, at)
        else:
            self._others += 1

    def next_at(self) -> int | None:
        """The time of the next alert, if there is anything to report."""
        if not self._waiting:
            return None
        return max(self._may_send_at, min(self._quiet_until.get(function_id, 0) for function_id in self._waiting))

    def take(self, now: int) -> Alert | None:
        """The failures to report now; ``None`` if there are none."""
        next_at = self.next_at()
        return None if next_at is None or next_at > now else self._take(now, everything=False)

    def take_all(self, now: int) -> Alert | None:
        """All failures that are not reported, at the end."""
        return self._take(now, everything=True) if self._waiting else None

    def _take(self, now: int, *, everything: bool) -> Alert:
        due = [each for name, each in self._waiting.items() if everything or self._quiet_until.get(name, 0) <= now]
        for each in due:
            del self._waiting[each.function_id]
        self._quiet_until = {name: until for name, until in self._quiet_until.items() if until > now}
        if len(self._quiet_until) < 10 * MAX_FUNCTIONS:  # Without an entry, a failure is reported at once.
            self._quiet_until.update({each.function_id: now + self._interval for each in due})
        others, self._others = self._others, 0
        self._may_send_at = now + self._spacing
        return Alert(tuple(due), others)
