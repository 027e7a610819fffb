"""``python -m benchmarks``: measure, print, and write RESULTS.md."""

import argparse
import os
import sys
from pathlib import Path

from . import cost, memory
from .apps import DURABLY, FAST_API, FLASK, PEER
from .report import render

RESULTS = Path(__file__).parent / "RESULTS.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and calls, a minute in all; writes no file")
    parser.add_argument("--only", choices=("cost", "memory"), help="one half; writes no file")
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("INNGEST_")]:
        del os.environ[name]  # settings of the shell, which would change what is measured

    rounds, slot, calls = (5, 0.03, 2_000) if options.quick else (21, 0.06, 100_000)
    series, growths = [], []
    if options.only != "memory":
        for framework in (FAST_API, FLASK):
            for is_signed in (False, True):
                _tell(f"cost: {framework}, {'signed' if is_signed else 'unsigned'}")
                series.append(cost.measure(framework, is_signed=is_signed, rounds=rounds, slot=slot))
    if options.only != "cost":
        for case in memory.CASES:
            _tell(f"memory: {case.description}")
            own = memory.measure(DURABLY, case, calls)
            assert own is not None
            growths.append((case, own, memory.measure(PEER, case, calls // 10)))
    text = render(series, growths, rounds)
    print(text)
    if not options.quick and options.only is None:
        RESULTS.write_text(text)


def _tell(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    main()
