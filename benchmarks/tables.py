"""Markdown tables of results, and the machine that they were measured on (but not its name)."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version

Row = Iterable[object]


def table(header: list[str], rows: Iterable[Row]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def judge(
    what: str, found: float, *, at_least: float | None = None, at_most: float | None = None, unit: str = "×"
) -> str:
    """One line of a list: a figure, its aim, and by how much that was missed, if it was."""
    if at_least is not None:
        aim, missed = f"at least {at_least:g} {unit}", at_least / found
    else:
        assert at_most is not None
        aim, missed = f"at most {at_most:g} {unit}", found / at_most
    verdict = "met" if missed <= 1 else f"missed by a factor of {missed:.2f}"
    return f"- {what}: {found:.2f} {unit}. Aim: {aim}, {verdict}."


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
