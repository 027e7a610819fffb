"""The SDK's cost: CPU time of one call through the handler, by the number of memos it replays.

Each round gives every contender one slot, in an order that changes from round to round, and compares within
the round, so that a machine that others use at the same time slows all of them alike. CPU time of the
process rather than wall time is counted, garbage collection and threads included.
"""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import linear_regression, median

from .apps import BARE, DURABLY, PEER, Send, check, make_app
from .calls import Call, make_call

PACKAGES = (BARE, DURABLY, PEER)
MEMOS = (0, 10, 100, 1000)


@dataclass(frozen=True)
class Cost:
    """CPU seconds per request, one sample a round for each package."""

    memos: int
    samples: dict[str, list[float]]

    def requests_per_second(self, package: str) -> float:
        return 1 / median(self.samples[package])

    def overhead(self, package: str) -> float:
        """Seconds per request beyond the bare framework's."""
        return median(sample - bare for sample, bare in zip(self.samples[package], self.samples[BARE], strict=True))

    @property
    def ratio(self) -> float:
        """Durably's overhead as a share of the peer's: the median of the rounds' own ratios."""
        rounds = zip(self.samples[BARE], self.samples[DURABLY], self.samples[PEER], strict=True)
        return median((own - bare) / (peer - bare) for bare, own, peer in rounds)


@dataclass(frozen=True)
class Series:
    """One function on one framework: its cost at each number of memos."""

    framework: str
    is_signed: bool
    costs: list[Cost]

    def per_memo(self, package: str) -> float:
        """Seconds per memo: the slope of the line fitted from 10 memos on."""
        fitted = [cost for cost in self.costs if cost.memos >= 10]
        line = linear_regression([cost.memos for cost in fitted], [cost.overhead(package) for cost in fitted])
        return float(line.slope)

    def slopes(self, package: str) -> list[float]:
        """Seconds per memo between one number of memos and the next, from 10 on; equal where the cost is linear."""
        fitted = [cost for cost in self.costs if cost.memos >= 10]
        return [
            (more.overhead(package) - less.overhead(package)) / (more.memos - less.memos)
            for less, more in pairwise(fitted)
        ]


def measure(framework: str, *, is_signed: bool, rounds: int, slot: float, memos: Sequence[int] = MEMOS) -> Series:
    """Measure all packages on one framework; ``slot`` is the least number of CPU seconds of each sample."""
    apps = {package: make_app(package, framework, is_signed=is_signed) for package in PACKAGES}
    return Series(framework, is_signed, [_measure(apps, is_signed, count, rounds, slot) for count in memos])


def _measure(apps: dict[str, Send], is_signed: bool, memos: int, rounds: int, slot: float) -> Cost:
    call = make_call("sequential", memos)
    times = {package: _calibrate(send, package, _ready(call, is_signed), slot) for package, send in apps.items()}
    samples: dict[str, list[float]] = {package: [] for package in apps}
    for number in range(rounds):
        turn = number % len(PACKAGES)
        for package in PACKAGES[turn:] + PACKAGES[:turn]:
            seconds = _time(apps[package], _ready(call, is_signed), times[package])
            samples[package].append(seconds / times[package])
    return Cost(memos, samples)


def _ready(call: Call, is_signed: bool) -> Call:
    return call.signed() if is_signed else call


def _calibrate(send: Send, package: str, call: Call, slot: float) -> int:
    """Warm up, check the answer, and find how many requests fill a slot."""
    check(send(call, 3), package, ["StepRun"])
    times = 1
    while (seconds := _time(send, call, times)) < slot / 4:
        times *= 2
    return max(1, round(times * slot / seconds))


def _time(send: Send, call: Call, times: int) -> float:
    gc.collect()  # what the slot before left behind is not this one's cost
    start = time.process_time()
    send(call, times)
    return time.process_time() - start
