"""The results as Markdown, with the machine that they were measured on (but not its name)."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version

from .apps import BARE, DURABLY, PEER
from .cost import Series
from .memory import Case, Growth

Row = Iterable[object]

PREFACE = """\
# Results

Written by `make bench`; how it is measured, and how to read it, stands in [README.md](README.md).
"""


def render(series: list[Series], growths: list[tuple[Case, Growth, Growth | None]], rounds: int) -> str:
    parts = [PREFACE, _machine(rounds)]
    if series:
        parts += ["## What a call costs\n", *map(_cost, series)]
    if growths:
        parts += ["## What calls leave behind\n", _memory(growths)]
    return "\n".join(parts)


def _machine(rounds: int) -> str:
    packages = ("inngest", "fastapi", "starlette", "flask", "werkzeug", "msgspec", "pydantic")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return (
        f"{os.cpu_count()} cores ({_processor()}), {platform.system()}, "
        f"{platform.python_implementation()} {platform.python_version()}; {versions}. Medians of {rounds} rounds.\n"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


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
    return "\n".join([title, _table(header, rows), _per_memo(series)])


def _per_memo(series: Series) -> str:
    lines = []
    for package in (DURABLY, PEER):
        slopes = " then ".join(f"{slope * 1e6:.1f}" for slope in series.slopes(package))
        lines.append(f"{package} {series.per_memo(package) * 1e6:.1f} µs ({slopes})")
    return f"Per memo, fitted from 10 to 1,000 (from 10 to 100, then to 1,000): {'; '.join(lines)}.\n"


def _memory(growths: list[tuple[Case, Growth, Growth | None]]) -> str:
    rows = [[case.description, *_growth(own), *_growth(peer)] for case, own, peer in growths]
    columns = ("calls", "RSS +KiB", "objects +", "garbage / call")
    return _table(["call", *(f"{package} {column}" for package in (DURABLY, PEER) for column in columns)], rows)


def _growth(growth: Growth | None) -> list[str]:
    if growth is None:
        return ["not supported", "", "", ""]
    return [
        f"{growth.calls:,}",
        f"{growth.rss / 1024:,.0f}",
        f"{growth.objects:,}",
        f"{growth.garbage:.0f}",
    ]


def _table(header: list[str], rows: Iterable[Row]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
