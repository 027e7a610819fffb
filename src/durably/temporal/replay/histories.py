"""Histories to replay: a server's most recent ones, or a directory's stored ones."""

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowHistory
from temporalio.service import RPCError, RPCStatusCode

from durably.errors import Error
from durably.temporal.namespace.inspection import OPEN_FILTER

State = Literal["running", "closed"]
STATES: tuple[State, ...] = ("running", "closed")
DEFAULT_LIMIT = 20
_LONGEST_ID = 120
"""Characters of a workflow's id in a file name."""


class HistoryError(Error):
    """Histories cannot be fetched or read.

    The message names the file, directory or query.
    """


@dataclass(frozen=True)
class StoredHistory:
    """A history, and its file if it was read from one."""

    history: WorkflowHistory
    source: str | None = None

    @property
    def started(self) -> HistoryEvent:
        return self.history.events[0]

    @property
    def workflow_type(self) -> str:
        return self.started.workflow_execution_started_event_attributes.workflow_type.name

    @property
    def task_queue(self) -> str:
        return self.started.workflow_execution_started_event_attributes.task_queue.name


@dataclass(frozen=True, kw_only=True)
class HistoryQuery:
    """A selection of a server's workflows.

    It has the ``limit`` most recent ones of each type and state, started after ``since``. ``query`` is a further
    condition of Temporal's list filters.
    """

    limit: int = DEFAULT_LIMIT
    query: str | None = None
    since: datetime | None = None
    states: Sequence[State] = STATES

    def filter(self, workflow_type: str, state: State) -> str:
        """The list filter."""
        parts = [f"WorkflowType = {_quoted(workflow_type)}"]
        parts.append(OPEN_FILTER if state == "running" else f"NOT {OPEN_FILTER}")
        if self.since is not None:
            parts.append(f"StartTime >= '{self.since.isoformat()}'")
        if self.query:
            parts.append(f"({self.query})")
        return " AND ".join(parts)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


async def list_workflows(client: Client, workflow_type: str, query: HistoryQuery) -> list[tuple[str, str]]:
    """Workflow ids and run ids. Raises ``HistoryError`` if the server refuses."""
    found: list[tuple[str, str]] = []
    for state in query.states:
        asked = query.filter(workflow_type, state)
        try:
            found += [(each.id, each.run_id) async for each in client.list_workflows(asked, limit=query.limit)]
        except RPCError as error:
            raise HistoryError(f"the server refuses the query {asked}: {error.message}") from error
    return found


async def fetch_histories(client: Client, workflow_type: str, query: HistoryQuery) -> AsyncIterator[StoredHistory]:
    """Fetch histories one after the other.

    Skips workflows that the server has deleted since they were listed. Raises ``HistoryError``.
    """
    for workflow_id, run_id in await list_workflows(client, workflow_type, query):
        try:
            history = await client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                continue
            raise HistoryError(f"the history of {workflow_id} cannot be fetched: {error.message}") from error
        yield StoredHistory(history)


def read_histories(directory: str | Path) -> Iterator[StoredHistory]:
    """The histories of all ``*.json`` files of a directory and below.

    The files are as `temporal workflow show -o json` prints them. Raises ``HistoryError`` for a directory without
    histories, and for a file without one.
    """
    paths = find_files(directory)
    return (read_history(path) for path in paths)


def find_files(directory: str | Path) -> list[Path]:
    """Raises ``HistoryError`` when there are none."""
    paths = sorted(Path(directory).rglob("*.json"))
    if not paths:
        problem = "has no *.json files" if Path(directory).is_dir() else "is not a directory"
        raise HistoryError(f"{directory} {problem}: `temporal workflow show --workflow-id … -o json` prints a history")
    return paths


def read_history(path: Path) -> StoredHistory:
    """Raises ``HistoryError``."""
    try:
        history = WorkflowHistory.from_json(path.stem, path.read_text("utf-8"))
    except Exception as error:  # Errors of the JSON and protobuf libraries.
        raise HistoryError(f"{path} is not a workflow's history: {error}") from error
    if not history.events or not history.events[0].HasField("workflow_execution_started_event_attributes"):
        raise HistoryError(f"{path} is not a workflow's history: it does not begin with WorkflowExecutionStarted")
    named = history.events[0].workflow_execution_started_event_attributes.workflow_id
    return StoredHistory(WorkflowHistory(named or path.stem, history.events), str(path))


def save_history(history: StoredHistory, directory: str | Path) -> Path:
    """Write a history to ``{type}/{workflow id}.{run id}.json``.

    The file is for the owner only, because it has the workflow's data.
    """
    own, of_type = history.history, quote(history.workflow_type, safe="")
    path = Path(directory) / of_type / f"{quote(own.workflow_id, safe='')[:_LONGEST_ID]}.{own.run_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(own.to_json())
    return path
