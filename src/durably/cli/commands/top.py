"""``durably top``: throughput, backlog and failures, live in the terminal."""

import contextlib
import datetime as dt
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import click

from durably.cli.options import client_options, json_option
from durably.cli.output.text import Styled, alternate_screen, draw, echo, echo_json, fit, format_seconds, shorten, style

if TYPE_CHECKING:
    from durably.cli.clients.engine_client import EngineClient
    from durably.engine.model.overview import FunctionLoad, Overview, RunCounts

_INTERVAL_SECONDS = 1.0
_PLAIN_WIDTH = 120
RANGE = dt.timedelta(hours=1)
"""The time for which runs are counted."""
_RATE_MINUTES = 5
_BARS = " ▁▂▃▄▅▆▇█"
_LEAST_NAME = 12
_GAP = 2


@click.command()
@click.option("--once", is_flag=True, help="Print the state once, as text.")
@json_option("the state, once")
@client_options
def top(client: "EngineClient", once: bool, as_json: bool) -> None:
    """Show throughput, backlog and failing functions, live.

    Counts are of the last hour; failing functions come first, then those with the longest backlog. q or Ctrl-C ends.
    Without a terminal it prints the state once.
    """
    if as_json:
        echo_json(_read(client))
    elif once or not (sys.stdout.isatty() and sys.stdin.isatty()):
        for line in render(_read(client), _PLAIN_WIDTH):
            echo(line)
    else:
        _show_live(client)


def _read(client: "EngineClient") -> "Overview":
    return client.overview_sync(since=dt.datetime.now(dt.UTC) - RANGE)


def _show_live(client: "EngineClient") -> None:
    overview = _read(client)  # An engine that does not answer at first is an error.
    with contextlib.suppress(KeyboardInterrupt), _screen() as wait_for_quit:
        problem: str | None = None
        while True:
            _draw(overview, problem)
            if wait_for_quit(_INTERVAL_SECONDS):
                return
            overview, problem = _read_again(client, overview)


def _read_again(client: "EngineClient", last: "Overview") -> "tuple[Overview, str | None]":
    """The present state; the last one with the reason if the engine does not answer."""
    try:
        return _read(client), None
    except click.ClickException as error:
        return last, error.message


def _draw(overview: "Overview", problem: str | None) -> None:
    width, height = shutil.get_terminal_size()
    footer = f"not up to date: {problem}" if problem else f"{time.strftime('%H:%M:%S')}  q ends"
    lines = [*render(overview, width, height - 2), Styled(""), style(fit(footer)[:width], dim=problem is None)]
    draw(lines[-height:])


@contextlib.contextmanager
def _screen() -> Iterator[Callable[[float], bool]]:
    """The alternate screen of the terminal, and a wait for the key ``q``.

    It waits at most so many seconds, and returns whether the key was pressed.
    """
    with _keys() as wait_for_quit, alternate_screen():
        yield wait_for_quit


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Keys of the terminal, without the Enter key. On Windows only Ctrl-C ends."""
    try:
        import select
        import termios
        import tty
    except ModuleNotFoundError:
        yield _only_wait
        return

    def wait_for_quit(seconds: float) -> bool:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        if not ready:
            return False
        keys = os.read(descriptor, 1024)  # sys.stdin would buffer keys that select does not see
        return not keys or b"q" in keys.lower()

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield wait_for_quit
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _only_wait(seconds: float) -> bool:
    time.sleep(seconds)
    return False


# lines


class _Column:
    """A column of numbers.

    Those at the end are left out first if the terminal is narrow.
    """

    def __init__(self, heading: str, read: Callable[["FunctionLoad"], str], colour: str | None = None) -> None:
        self.heading = heading
        self.read = read
        self.colour = colour


def _number(count: int | None) -> str:
    if count is None:
        return "–"
    return f"{count:,}" if count else "·"


def _ended(counts: "Sequence[RunCounts]") -> int:
    return sum(each.completed + each.failed + each.cancelled + each.skipped for each in counts)


def _failed(load: "FunctionLoad") -> int:
    return sum(each.open_failures for each in load.counts)


_COLUMNS = (
    _Column("FAILED", lambda load: _number(_failed(load)), "red"),
    _Column("BACKLOG", lambda load: _number(load.backlog), "yellow"),
    _Column("RUNS/H", lambda load: _number(_ended(load.counts))),
    _Column("DELAY", lambda load: "·" if load.queue_delay is None else format_seconds(load.queue_delay)),
    _Column("CALLS", lambda load: _number(load.in_flight)),
    _Column("LIVE", lambda load: _number(load.live)),
)


def render(overview: "Overview", width: int, height: int | None = None) -> list[Styled]:
    """The lines of a screen, each at most ``width`` characters.

    All lines without a ``height``.
    """
    top = [*_totals(overview, width), Styled("")]
    concerns = [line for concern in overview.concerns for line in _concern(concern.message, width)]
    loads = sorted(overview.functions, key=lambda load: (-_failed(load), -(load.backlog or 0), -_ended(load.counts)))
    rows = _table(loads, width)
    if height is None:
        return [*top, *rows, *([Styled(""), *concerns] if concerns else [])]
    # At least half of the screen is for functions.
    concerns = concerns[: max((height - len(top)) // 2 - 1, 0)]
    left = max(height - len(top) - (len(concerns) + 1 if concerns else 0), 1)
    if len(rows) > left:
        rows = [*rows[: left - 1], style(shorten(f"… {len(rows) - left + 1} more", width), dim=True)]
    return [*top, *rows, *([Styled(""), *concerns] if concerns else [])][:height]


def _concern(message: str, width: int) -> list[Styled]:
    """A sentence in lines, with its remedy, which is at its end."""
    words = fit(f"! {message}")
    lines = textwrap.wrap(words, max(width, _LEAST_NAME), subsequent_indent="  ", break_on_hyphens=False)
    return [style(shorten(line, width), fg="yellow") for line in lines]


def _totals(overview: "Overview", width: int) -> list[Styled]:
    # The last interval is not over.
    recent = overview.counts[-_RATE_MINUTES - 1 : -1]
    minutes = max(len(recent) * overview.interval_seconds / 60, 1)
    failed, ended = sum(each.failed for each in overview.counts), _ended(overview.counts)
    replayed = sum(each.replayed for each in overview.counts)
    facts = [
        f"{_ended(recent) / minutes:,.1f} runs/min",
        f"{failed:,} of {ended:,} failed in 1 h{f' ({replayed:,} replayed since)' if replayed else ''}",
        *_calls(overview.functions),
        *(f"{count:,} {status.value.lower()}" for status, count in overview.live.items()),
    ]
    chart = _chart([_ended([each]) for each in overview.counts[-width:]])
    return [*(style(line, bold=True) for line in _wrap(facts, width)), style(chart[:width], fg="green")]


def _calls(loads: "Sequence[FunctionLoad]") -> list[str]:
    """Calls that wait and that are under way, if the engine counts them."""
    backlogs = [load.backlog for load in loads if load.backlog is not None]
    calls = [load.in_flight for load in loads if load.in_flight is not None]
    if loads and not calls:
        return []
    return [f"backlog {sum(backlogs):,}", f"{sum(calls):,} calls"]


def _wrap(facts: Sequence[str], width: int) -> list[str]:
    """The facts in lines, each at most ``width`` characters."""
    lines: list[str] = []
    for fact in facts:
        if lines and len(lines[-1]) + len(fact) + 3 <= width:
            lines[-1] += f" · {fact}"
        else:
            lines.append(fact)
    return [shorten(line, width) for line in lines]


def _chart(values: Sequence[int]) -> str:
    """A bar for each value; a value above zero is visible."""
    most = max(values, default=0) or 1
    return "".join(_BARS[-(-value * (len(_BARS) - 1) // most)] for value in values)


def _table(loads: "Sequence[FunctionLoad]", width: int) -> list[Styled]:
    if not loads:
        return [style(shorten("no functions: sync an app with this engine", width), dim=True)]
    cells = [[column.read(load) for column in _COLUMNS] for load in loads]
    widths = [max(len(column.heading), *(len(row[index]) for row in cells)) for index, column in enumerate(_COLUMNS)]
    name = min(max(len(fit(load.function_id)) for load in loads), max(width // 2, _LEAST_NAME))
    ends = accumulate((each + _GAP for each in widths), initial=name)
    shown = max(sum(end <= width for end in ends) - 1, 0)
    headings = "".join(
        f"{' ' * _GAP}{column.heading:>{size}}" for column, size in zip(_COLUMNS[:shown], widths, strict=False)
    )
    lines = [style(f"{shorten('FUNCTION', width):<{min(name, width)}}{headings}", bold=True)]
    for load, row in zip(loads, cells, strict=True):
        shown_cells = zip(_COLUMNS[:shown], row, widths, strict=False)
        numbers = "".join(_cell(column, text, size) for column, text, size in shown_cells)
        lines.append(Styled(fit(f"{shorten(load.function_id, min(name, width)):<{min(name, width)}}") + numbers))
    return lines


def _cell(column: _Column, text: str, size: int) -> str:
    padded = f"{' ' * _GAP}{text:>{size}}"
    return padded if column.colour is None or text == "·" else style(padded, fg=column.colour)
