"""Lines of ``ctx.logger``, as the engine has kept them."""

import sqlite3

from durably.engine.reports import LogEntry, LogPage
from durably.engine.views import from_microseconds
from durably.protocol.logs import LogLine

from .views import Conditions

_LINE = "at, level, message, step, attempt"


def run_lines(connection: sqlite3.Connection, run_key: int) -> list[LogLine]:
    """The lines of a run, in the order of their times."""
    rows = connection.execute(f"SELECT {_LINE} FROM run_logs WHERE run_key = ? ORDER BY at, key", (run_key,))
    return [_line(*row) for row in rows]


def list_logs(
    connection: sqlite3.Connection, run_id: str | None, function_id: str | None, position: int | None, limit: int
) -> LogPage:
    """Lines from a position on, or the latest."""
    conditions = Conditions()
    conditions.add("run_key = (SELECT key FROM runs WHERE id = ?)", run_id)
    conditions.add("function_id = ?", function_id)
    conditions.add("run_logs.key >= ?", position)
    order = "DESC" if position is None else "ASC"
    (last,) = connection.execute("SELECT coalesce(max(key), 0) FROM run_logs").fetchone()
    rows = connection.execute(
        f"SELECT run_logs.key, id, function_id, {_LINE} FROM run_logs JOIN runs ON runs.key = run_key"
        f"{conditions.text} ORDER BY run_logs.key {order} LIMIT ?",
        (*conditions.values, limit),
    ).fetchall()
    entries = [LogEntry(run_id=row[1], function_id=row[2], line=_line(*row[3:])) for row in sorted(rows)]
    is_cut = position is not None and len(rows) == limit
    return LogPage(entries=entries, position=(rows[-1][0] if is_cut else last) + 1)


def _line(at: int, level: str, message: str, step: str | None, attempt: int | None) -> LogLine:
    return LogLine(at=from_microseconds(at), level=level, message=message, step=step, attempt=attempt)
