"""Memory: what is left in a process after very many calls that each park and are torn down.

Each case runs in a process of its own (``python -m benchmarks.memory``), since what one package leaves behind
would be counted against the next. A first stretch of calls fills caches and pools; what grows after it is a leak.
"""

import gc
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass

from .apps import DURABLY, FAST_API, FLASK, check, make_app
from .calls import make_call

WARM_UP = 2_000
MEMOS = 10


@dataclass(frozen=True)
class Case:
    """``opcodes`` are those of the answer; a call of ``parallel`` and ``gather`` tears three branches down."""

    description: str
    framework: str
    function: str
    opcodes: tuple[str, ...]


CASES = (
    Case("async, step executed", FAST_API, "sequential", ("StepRun",)),
    Case("async, step planned", FAST_API, "sequential", ("StepPlanned",)),
    Case("async, group.parallel", FAST_API, "parallel", ("StepPlanned",) * 3),
    Case("async, asyncio.gather", FAST_API, "gather", ("StepPlanned",) * 3),
    Case("sync, step executed", FLASK, "sequential", ("StepRun",)),
    Case("sync, group.parallel", FLASK, "parallel", ("StepPlanned",) * 3),
)


@dataclass(frozen=True)
class Footprint:
    """Of this process: resident bytes, and objects that the garbage collector tracks."""

    rss: int
    objects: int


@dataclass(frozen=True)
class Growth:
    """Memory that ``calls`` calls added; ``garbage`` counts the objects a call leaves to the garbage collector."""

    calls: int
    before: Footprint
    after: Footprint
    garbage: float

    @property
    def rss(self) -> int:
        return self.after.rss - self.before.rss

    @property
    def objects(self) -> int:
        return self.after.objects - self.before.objects


def measure(package: str, case: Case, calls: int) -> Growth | None:
    """Measure in a new process; ``None`` where the package does not support what the case does."""
    arguments = [package, str(CASES.index(case)), str(calls)]
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    if result is None:
        return None
    before, after = Footprint(**result.pop("before")), Footprint(**result.pop("after"))
    return Growth(before=before, after=after, **result)


def _run(package: str, case: Case, calls: int) -> Growth | None:
    send = make_app(package, case.framework)
    call = make_call(case.function, MEMOS, is_immediate=case.opcodes == ("StepRun",))
    try:
        check(send(call, WARM_UP), package, list(case.opcodes))
    except RuntimeError:
        if package == DURABLY:
            raise
        return None
    _footprint()  # listing the objects takes memory of its own, the first time
    before = _footprint()
    send(call, calls)
    after = _footprint()
    gc.disable()
    send(call, 100)
    return Growth(calls, before, after, gc.collect() / 100)


def _footprint() -> Footprint:
    gc.collect()
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    return Footprint(pages * os.sysconf("SC_PAGE_SIZE"), len(gc.get_objects()))


if __name__ == "__main__":
    growth = _run(sys.argv[1], CASES[int(sys.argv[2])], int(sys.argv[3]))
    print(json.dumps(None if growth is None else asdict(growth)))
