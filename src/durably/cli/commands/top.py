"""``durably top``: throughput, backlog and failures, live in the terminal."""

import contextlib
import datetime as dt
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from durably.cli.options import client_options, json_option
from durably.cli.output.text import Styled, alternate_screen, draw, echo, echo_json, fit, style
from durably.cli.output.top_text import RANGE, render

if TYPE_CHECKING:
    from durably.cli.clients.engine_client import EngineClient
    from durably.engine.reports import Overview

_INTERVAL_SECONDS = 1.0
_PLAIN_WIDTH = 120


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
