"""The SDK's two rows: what a call costs, and what calls leave behind."""

import sys
from pathlib import Path

from . import cost, memory
from .apps import BARE, DURABLY, FAST_API, FLASK, PEER
from .cost import Series
from .memory import Case, Growth
from .tables import describe_machine, table


def report_cost(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    rounds, slot = (5, 0.03) if is_quick else (21, 0.06)
    series = []
    for framework in (FAST_API, FLASK):
        for is_signed in (False, True):
            print(f"cost: {framework}, {'signed' if is_signed else 'unsigned'}", file=sys.stderr)
            series.append(cost.measure(framework, is_signed=is_signed, rounds=rounds, slot=slot))
    machine = describe_machine(("inngest", "fastapi", "starlette", "flask", "werkzeug", "msgspec", "pydantic"))
    return "\n".join(["## What a call costs\n", f"{machine} Medians of {rounds} rounds.\n", *map(_cost, series)])


def report_memory(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    calls = 2_000 if is_quick else 100_000
    growths = []
    for case in memory.CASES:
        print(f"memory: {case.description}", file=sys.stderr)
        own = memory.measure(DURABLY, case, calls)
        assert own is not None
        growths.append((case, own, memory.measure(PEER, case, calls // 10)))
    return "\n".join(["## What calls leave behind\n", _memory(growths)])


def _cost(series: Series) -> str:
    kind = "An async function on FastAPI" if series.framework == "FastAPI" else "A sync function on Flask"
    title = f"### {kind}, calls {'signed' if series.is_signed else 'unsigned'}\n"
    rows = [
        [
            cost.memos,
            *(f"{cost.requests_per_second(package):,.0f}" for package in (BARE, DURABLY, PEER)),
            *(f"{cost.overhead(package) * 1e6:,.0f}" for package in (DURABLY, PEER)),
            f"1 / {1 / cost.ratio:.1f}",
        ]
        for cost in series.costs
    ]
    header = ["memos", "bare req/s", "durably req/s", "inngest req/s", "durably µs", "inngest µs", "ratio"]
    return "\n".join([title, table(header, rows), _per_memo(series)])


def _per_memo(series: Series) -> str:
    lines = []
    for package in (DURABLY, PEER):
        slopes = " then ".join(f"{slope * 1e6:.1f}" for slope in series.slopes(package))
        lines.append(f"{package} {series.per_memo(package) * 1e6:.1f} µs ({slopes})")
    return f"Per memo, fitted from 10 to 1,000 (from 10 to 100, then to 1,000): {'; '.join(lines)}.\n"


def _memory(growths: list[tuple[Case, Growth, Growth | None]]) -> str:
    rows = [[case.description, *_growth(own), *_growth(peer)] for case, own, peer in growths]
    columns = ("calls", "RSS +KiB", "objects +", "garbage / call")
    return table(["call", *(f"{package} {column}" for package in (DURABLY, PEER) for column in columns)], rows)


def _growth(growth: Growth | None) -> list[str]:
    if growth is None:
        return ["not supported", "", "", ""]
    return [
        f"{growth.calls:,}",
        f"{growth.rss / 1024:,.0f}",
        f"{growth.objects:,}",
        f"{growth.garbage:.0f}",
    ]
