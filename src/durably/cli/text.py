"""The output of commands: text that is safe for a terminal, colours, columns, JSON, and errors."""

import contextlib
import datetime as dt
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from durably.protocol.text import printable, printable_json, printable_lines

if TYPE_CHECKING:
    from durably.engine.model.runs import Run

STATUS_COLOURS = {
    "Scheduled": "blue",
    "Running": "blue",
    "Completed": "green",
    "Failed": "red",
    "Cancelled": "yellow",
    "Skipped": "yellow",
}
_SHORT_ID_LENGTH = 6
_START_OF_LINE = "\r\x1b[K"
"""Clears the line of the cursor."""


class Styled(str):
    """Text that is safe for a terminal.

    Text of apps is escaped. Colours are from this module.
    """

    __slots__ = ()


def style(text: object, **styles: Any) -> Styled:
    """A text, printable and coloured."""
    return Styled(click.style(fit(text), **styles))


def fit(text: object) -> Styled:
    """One line that is safe for a terminal."""
    return text if isinstance(text, Styled) else Styled(printable(text))


def fit_lines(text: object) -> Styled:
    """Several lines that are safe for a terminal: tracebacks only."""
    return text if isinstance(text, Styled) else Styled(printable_lines(text))


def echo(text: object, *, err: bool = False) -> None:
    """Print one line; ``Styled`` text may have several.

    All commands print with this function.
    """
    click.echo(fit(text), err=err)


_BAR_WIDTH = 20


def bar(done: int, total: int) -> str:
    """A bar with the share that is done: ``████░░░░░░░░░░░░░░░░ 22 %``."""
    share = min(max(done / total, 0.0), 1.0) if total > 0 else 1.0
    filled = int(share * _BAR_WIDTH)
    return f"{'█' * filled}{'░' * (_BAR_WIDTH - filled)} {int(share * 100)} %"


@contextlib.contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """A function that shows its text as the last line of stderr.

    The end of the context clears it. Nothing is printed if stderr is not a terminal.
    """

    def show(text: str) -> None:
        if is_shown:
            width = shutil.get_terminal_size().columns - 1  # a longer line would wrap, and not be replaced
            click.echo(_START_OF_LINE + shorten(text, width), nl=False, err=True, color=True)

    is_shown = sys.stderr.isatty()
    try:
        yield show
    finally:
        if is_shown:
            click.echo(_START_OF_LINE, nl=False, err=True, color=True)


def short_id(run_id: str) -> str:
    """The end of a run's id: its random part."""
    return run_id[-_SHORT_ID_LENGTH:]


def format_seconds(seconds: float) -> str:
    """``0.042 s`` … ``59.9 s``, then ``3 m 20 s``, ``2 h 5 m``, ``4 d 1 h``."""
    if seconds < 1:
        return f"{max(seconds, 0.0):.3f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (whole_seconds, "s")]
    while not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count)


def format_local(time: dt.datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def describe_zone(times: Iterable[dt.datetime]) -> str:
    """The zone of local times, such as "UTC+01:00".

    "local time" if the times differ in their distance from UTC.
    """
    offsets = {time.astimezone().strftime("%z") for time in times}
    if len(offsets) != 1:
        return "local time"
    [offset] = offsets
    return "UTC" if offset == "+0000" else f"UTC{offset[:3]}:{offset[3:5]}"


def describe_status(run: "Run") -> Styled:
    """The status, and what an idle run does."""
    idle = "" if run.waiting is None else style(f" ({run.waiting.kind})", dim=True)
    return Styled(f"{coloured_status(run.status)}{idle}")


def format_clock(time: dt.datetime, now: dt.datetime) -> str:
    """The local time of day, with the date if that is not today's."""
    local = time.astimezone()
    return local.strftime("%H:%M:%S" if local.date() == now.astimezone().date() else "%Y-%m-%d %H:%M:%S")


def format_json(value: Any) -> str:
    return printable_json(json.dumps(value, ensure_ascii=False))


def shorten(text: str, width: int) -> str:
    """One line of at most ``width`` characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"


def coloured_status(status: str) -> Styled:
    return style(status, fg=STATUS_COLOURS.get(status))


def table(headings: list[str], rows: list[list[str]]) -> Styled:
    """Left-aligned columns, as wide as their widest cell; colours do not count."""
    lines = [[style(heading, bold=True) for heading in headings], *([fit(cell) for cell in row] for row in rows)]
    widths = [max(len(click.unstyle(line[column])) for line in lines) for column in range(len(headings))]
    padded = (
        [cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(line, widths, strict=True)]
        for line in lines
    )
    return Styled("\n".join("  ".join(cells).rstrip() for cells in padded))


def describe_facts(facts: list[tuple[str, str]]) -> Styled:
    """A line for each name and value."""
    return Styled("\n".join(f"{style(name.ljust(9), bold=True)} {fit(value)}" for name, value in facts))


def echo_json_line(value: object) -> None:
    """``echo_json`` on one line, for streams of values."""
    import msgspec

    click.echo(printable_json(msgspec.json.encode(value).decode()))


def echo_json(value: object) -> None:
    """Print a value as JSON, for programs."""
    import msgspec

    click.echo(printable_json(msgspec.json.format(msgspec.json.encode(value), indent=2).decode()))


class Console:
    """The output of a command that runs until it is stopped."""

    def say(self, line: str) -> None:
        click.echo(fit(line))

    def note(self, line: str) -> None:
        """Print a line about the command itself, not about runs."""
        click.secho(fit(line), dim=True)

    def warn(self, line: str) -> None:
        """Print a warning; work continues."""
        click.secho(fit(line), fg="yellow", err=True)


class CliError(click.ClickException):
    """Ends a command with exit code 1.

    ``message`` is one or two lines: the problem and the remedy.
    """

    def format_message(self) -> str:
        return printable_lines(self.message)
