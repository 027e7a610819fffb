"""What results are written with: Markdown tables, and the machine that they were measured on (but not its name)."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version

Row = Iterable[object]


def table(header: list[str], rows: Iterable[Row]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def describe_machine(packages: Iterable[str] = ()) -> str:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    versions = [f"{package} {version(package)}" for package in packages]
    return f"{os.cpu_count()} cores ({_processor()}), {platform.system()}, {', '.join([python, *versions])}."


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
