"""The report of one run: all that the engine knows of it, in one read."""

import sqlite3
from typing import Any

from durably.engine.reports import RunReport, StepReport
from durably.engine.spans import run_spans
from durably.engine.views import EventView, RunView, to_milliseconds
from durably.protocol.errors import ErrorData
from durably.protocol.sync import decode_function

from .queries import FirstCallAt, find_event, find_run
from .run_links import child_links, parent_link
from .run_logs import run_lines
from .run_steps import CalledAt, StepReader, decode_error


def read_run_report(
    connection: sqlite3.Connection, run_id: str, first_call_at: FirstCallAt, called_at: CalledAt
) -> RunReport | None:
    """The report; ``None`` if there is no such run."""
    run = find_run(connection, run_id, first_call_at)
    if run is None:
        return None
    key, event_key, app_version, last_called_at, unfinished = connection.execute(
        "SELECT key, event_key, app_version, last_called_at, unfinished FROM runs WHERE id = ?", (run_id,)
    ).fetchone()
    children, has_more_children = child_links(connection, key, run_id, first_call_at)
    reader = StepReader(connection, key, run, called_at, children)
    steps = sorted(reader.read(unfinished), key=_start_of)
    if last_called_at is not None and run.ended_at is not None:
        reader.note_call(last_called_at, to_milliseconds(run.ended_at))
    return RunReport(
        run=run,
        function_name=_function_name(connection, run.function_id),
        app_version=app_version,
        spans=run_spans(
            to_milliseconds(run.created_at) * 1000,
            None if run.started_at is None else to_milliseconds(run.started_at) * 1000,
            None if run.ended_at is None else to_milliseconds(run.ended_at) * 1000,
            reader.calls,
            reader.attempts(None),
            [span for step in steps for span in step.spans],
            reader.due_times,
        ),
        steps=steps,
        failed_attempts=reader.attempt_reports(None),
        events=_events(connection, run),
        parent=parent_link(connection, event_key, run.rerun_of, first_call_at),
        children=children,
        has_more_children=has_more_children,
        logs=run_lines(connection, key),
        error=_error_of(run),
    )


def _start_of(step: StepReport) -> Any:
    return step.spans[0].start if step.spans else step.created_at


def _events(connection: sqlite3.Connection, run: RunView) -> list[EventView]:
    found = (find_event(connection, event_id) for event_id in run.event_ids)
    return [event for event in found if event is not None]


def _function_name(connection: sqlite3.Connection, function_id: str) -> str:
    row = connection.execute("SELECT config FROM functions WHERE id = ?", (function_id,)).fetchone()
    return (decode_function(row[0]).name if row else None) or function_id


def _error_of(run: RunView) -> ErrorData | None:
    if run.output is None or not run.status.has_ended or run.status == "Completed":
        return None
    return decode_error(run.output)
