"""The columns of the list of runs, which a reader chooses.

A cookie keeps the choice.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from durably.engine.dashboard.access.cookies import read_cookie
from durably.engine.dashboard.messages import DashboardRequest
from durably.engine.views import RunStatus, RunView

COOKIE = "durably-columns"
_SEPARATOR = "."
_LONGEST_OUTPUT = 80
"""Characters of an output in the list."""


class Column(StrEnum):
    """A column that a reader may show, besides the status and the function."""

    RUN = "run"
    APP = "app"
    EVENT = "event"
    CREATED = "created"
    STARTED = "started"
    DURATION = "duration"
    FAILED_ATTEMPTS = "failed-attempts"
    OUTPUT = "output"

    @property
    def heading(self) -> str:
        return self.replace("-", " ").capitalize()


DEFAULT_COLUMNS = (Column.RUN, Column.CREATED, Column.DURATION)


def read_columns(request: DashboardRequest) -> Sequence[Column]:
    """The columns that the reader has chosen, in the order of ``Column``."""
    chosen = read_cookie(request.headers, COOKIE)
    if chosen is None:
        return DEFAULT_COLUMNS
    names = chosen.split(_SEPARATOR)
    return [column for column in Column if column in names]


def write_columns(fields: Mapping[str, str]) -> str:
    """The cookie for the fields of the form."""
    return _SEPARATOR.join(column for column in Column if f"column-{column}" in fields)


def describe_output(run: RunView) -> str | None:
    """The first characters of what a completed run returned."""
    if run.status is not RunStatus.COMPLETED:
        return None
    if run.output is None:
        return "more than 16 KiB"
    text = bytes(run.output).decode()
    return text if len(text) <= _LONGEST_OUTPUT else f"{text[:_LONGEST_OUTPUT]}…"
