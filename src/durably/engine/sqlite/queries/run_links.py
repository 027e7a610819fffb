"""The runs that started a run, and those that it started."""

import sqlite3
from collections.abc import Iterable
from typing import Any

import msgspec

from durably.engine.core.run_state import RunStatus, decode_origin
from durably.engine.reports import Relation, RunLink, relation_by
from durably.engine.views import to_datetime
from durably.protocol.events import InternalEvent

from .views import FirstCallAt

MAX_CHILDREN = 200
"""The maximum number of children that a report has."""

_LINK = "SELECT runs.key, runs.id, runs.function_id, runs.status, runs.created_at, runs.started_at FROM runs"
_SENDER = "CAST(substr(events.origin, 2) AS INTEGER)"
"""The run of an origin, as the index ``events_by_sender_run`` has it."""
_SENT = f"{_SENDER} = ? AND events.origin IS NOT NULL AND events.name <> 'inngest/function.finished'"


class _Metadata(msgspec.Struct):
    correlation_id: str = ""
    name: str = ""


class _InvocationData(msgspec.Struct, rename={"metadata": "_inngest"}):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


class Invocation(msgspec.Struct):
    """The event of an invocation, with what the engine added to its data."""

    data: _InvocationData = msgspec.field(default_factory=_InvocationData)

    @property
    def step(self) -> str | None:
        """The invoking step's id, as the user wrote it."""
        return self.data.metadata.name or None


_decoder = msgspec.json.Decoder(Invocation)


def parent_link(
    connection: sqlite3.Connection, event_key: int, rerun_of: str | None, first_call_at: FirstCallAt
) -> RunLink | None:
    """The run that started a run by ``event_key``, or that a rerun repeats.

    ``None`` if there is none any more.
    """
    if rerun_of is not None:
        row = connection.execute(f"{_LINK} WHERE id = ?", (rerun_of,)).fetchone()
        return _link(row, Relation.RERUN, None, first_call_at) if row else None
    name, stored = connection.execute("SELECT name, origin FROM events WHERE key = ?", (event_key,)).fetchone()
    origin = decode_origin(stored)
    row = None if origin is None else connection.execute(f"{_LINK} WHERE key = ?", (origin.run_key,)).fetchone()
    if row is None:
        return None
    relation = relation_by(name)
    step = None
    if relation is Relation.INVOKED:
        (body,) = connection.execute("SELECT body FROM events WHERE key = ?", (event_key,)).fetchone()
        step = _invoking_step(body)
    return _link(row, relation, step, first_call_at)


def child_links(
    connection: sqlite3.Connection, run_key: int, run_id: str, first_call_at: FirstCallAt
) -> tuple[list[RunLink], bool]:
    """The runs that a run started, the earliest first, and whether there are more.

    Functions that the event of the run's end triggers are among them only if it failed or was cancelled.
    """
    links: list[tuple[int, RunLink]] = []
    for table, column in (("runs", "event_key"), ("run_events", "event_key")):
        key = "key" if table == "runs" else "run_key"
        rows = connection.execute(
            f"SELECT {table}.{key}, events.name, CASE WHEN events.name = ? THEN events.body END FROM events "
            f"JOIN {table} ON {table}.{column} = events.key WHERE {_SENT} ORDER BY 1 LIMIT ?",
            (InternalEvent.FUNCTION_INVOKED, run_key, MAX_CHILDREN + 1),
        )
        for child_key, name, body in rows.fetchall():
            row = connection.execute(f"{_LINK} WHERE key = ? AND rerun_of IS NULL", (child_key,)).fetchone()
            if row:
                step = None if body is None else _invoking_step(body)
                relation = relation_by(name)
                links.append((child_key, _link(row, relation, step, first_call_at)))
    reruns = connection.execute(f"{_LINK} WHERE rerun_of = ? ORDER BY key LIMIT ?", (run_id, MAX_CHILDREN + 1))
    links += [(row[0], _link(row, Relation.RERUN, None, first_call_at)) for row in reruns.fetchall()]
    by_key = dict(sorted(links, key=lambda link: link[0]))
    return list(by_key.values())[:MAX_CHILDREN], len(by_key) > MAX_CHILDREN


def run_links(connection: sqlite3.Connection, run_keys: Iterable[int], first_call_at: FirstCallAt) -> list[RunLink]:
    """Links to runs by their keys, without relations."""
    rows = (connection.execute(f"{_LINK} WHERE key = ?", (run_key,)).fetchone() for run_key in run_keys)
    return [_link(row, None, None, first_call_at) for row in rows if row]


def _invoking_step(body: bytes) -> str | None:
    try:
        return _decoder.decode(body).step
    except msgspec.MsgspecError:
        return None


def _link(row: Any, relation: Relation | None, step: str | None, first_call_at: FirstCallAt) -> RunLink:
    key, run_id, function_id, stored, created_at, started_at = row
    status = RunStatus(stored)
    if status is RunStatus.SCHEDULED and (started_at is not None or first_call_at(key) is not None):
        status = RunStatus.RUNNING
    return RunLink(
        run_id=run_id,
        function_id=function_id,
        status=status,
        created_at=to_datetime(created_at),
        relation=relation,
        step=step,
    )
