"""The stream of ``durably logs --follow``: log lines and updates of runs."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from durably.cli.clients.engine_client import EngineClient, existing
from durably.engine.model.runs import END_UPDATES, LogEntry, LogPage, Run, RunUpdate, UpdateKind

from .run_text import describe_update
from .text import CliError, Styled, fit, format_clock, short_id, shorten, style

T = TypeVar("T")
_AFTER_END_SECONDS = 1.0
"""Seconds for the last lines of a run that has ended: apps send them a little later."""
_DETAIL_WIDTH = 500
_INTERRUPT_SECONDS = 0.5
"""On Windows, Ctrl-C has no effect while a thread waits for a queue."""

_FAILED_ATTEMPTS = {UpdateKind.RETRYING, UpdateKind.STEP_FAILED, UpdateKind.UNREACHED}
_SHOWN = {UpdateKind.RUN_STARTED, *END_UPDATES.values(), *_FAILED_ATTEMPTS}
_COLOURS = {
    UpdateKind.RUN_COMPLETED: "green",
    UpdateKind.RUN_FAILED: "red",
    UpdateKind.STEP_FAILED: "red",
    UpdateKind.RUN_CANCELLED: "yellow",
    UpdateKind.RUN_SKIPPED: "yellow",
    UpdateKind.RETRYING: "yellow",
    UpdateKind.UNREACHED: "yellow",
}


def followed_lines(
    client: EngineClient, run_id: str | None, page: LogPage, read_from: Callable[[int], LogPage]
) -> Iterator[LogEntry]:
    """The lines of ``page`` and those that follow, until the run has ended.

    ``read_from`` returns the lines from a position on.
    """
    change = None
    ends_at = None
    while True:
        yield from page.entries
        if not page.entries:
            if ends_at is not None and time.monotonic() > ends_at:
                return
            if ends_at is None and run_id is not None and existing(client.get_run_sync(run_id)).status.has_ended:
                ends_at = time.monotonic() + _AFTER_END_SECONDS
            if ends_at is None:
                change = client.wait_for_changes_sync(after=change).position
            else:
                time.sleep(_AFTER_END_SECONDS / 5)
        page = read_from(page.position)


def followed_updates(
    client: EngineClient, run: Run | None, function_id: str | None, *, on_connected: Callable[[], None]
) -> Iterator[RunUpdate]:
    """Starts, failed attempts and ends of runs, from now on.

    Of one ``run`` only failed attempts: the others are ``start_of`` and ``end_of``. Raises ``CliError`` when the engine
    stops.
    """
    shown = _SHOWN if run is None else _FAILED_ATTEMPTS
    for update in client.updates(
        function_id=function_id if run is None else run.function_id, on_connected=on_connected
    ):
        if update.kind in shown and (run is None or update.run_id == run.id):
            yield update
    raise CliError("the engine stopped")


def describe_change(update: RunUpdate) -> Styled:
    """Time, run, function, kind, step and detail, in the columns of lines."""
    parts = (
        style(format_clock(update.at, update.at), dim=True),
        style(short_id(update.run_id), fg="magenta"),
        fit(update.function_id),
        style(update.kind.value, fg=_COLOURS.get(update.kind), bold=True),
        *([style(update.step, dim=True)] if update.step else []),
        fit(shorten(describe_update(update), _DETAIL_WIDTH)),
    )
    return Styled("  ".join(filter(None, parts)))


class _Ended(NamedTuple):
    error: BaseException | None


def merge(sources: Sequence[Iterator[T]]) -> Iterator[T]:
    """The values of blocking iterators as they come, until one of them ends.

    Each is read by a thread of its own. Raises the first error of any.
    """
    values: queue.SimpleQueue[T | _Ended] = queue.SimpleQueue()

    def read(source: Iterator[T]) -> None:
        try:
            for value in source:
                values.put(value)
            values.put(_Ended(None))
        except BaseException as error:
            values.put(_Ended(error))

    for source in sources:
        threading.Thread(target=read, args=(source,), daemon=True).start()
    while True:
        try:
            value = values.get(timeout=_INTERRUPT_SECONDS)
        except queue.Empty:
            continue
        if not isinstance(value, _Ended):
            yield value
        elif value.error is not None:
            raise value.error
        else:
            return
