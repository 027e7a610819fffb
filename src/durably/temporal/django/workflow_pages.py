"""What the admin's pages show: pages of workflows by filters, and one workflow with its activities and its history.

Asynchronous, over ``temporalio``'s client; knows no requests and no templates. Inputs and results stay on the server.
"""

import datetime as dt
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from temporalio.client import Client, WorkflowExecution, WorkflowHandle

from durably.temporal.gateway.history import Brief
from durably.temporal.gateway.models import HistoryEvent, PendingActivity
from durably.temporal.gateway.pages import Pages
from durably.temporal.gateway.reading import FILTERS, fetch_page, pending_activity, status_of
from durably.temporal.gateway.visibility import Filter, all_of, compare, parse, write
from durably.temporal.inspection import Inspector
from durably.temporal.statuses import is_open

from .conf import get_temporal

PAGE_SIZE = 50
HISTORY_PAGE_SIZE = 200
RPC_TIMEOUT = dt.timedelta(seconds=5)

STATUSES = tuple(FILTERS)
PERIODS = {"hour": dt.timedelta(hours=1), "day": dt.timedelta(days=1), "week": dt.timedelta(days=7)}
TEXT_FILTERS = {"id": ("WorkflowId", "STARTS_WITH"), "type": ("WorkflowType", "="), "queue": ("TaskQueue", "=")}
"""Filters that are typed in, and their search attribute and operator."""


@functools.cache
def _inspector() -> Inspector:
    return Inspector(get_temporal())


@dataclass(frozen=True)
class Row:
    """A workflow in the list."""

    workflow_id: str
    run_id: str
    type: str
    status: str
    task_queue: str
    start_time: dt.datetime
    close_time: dt.datetime | None


@dataclass(frozen=True)
class RowPage:
    """``count`` is that of all pages, about; ``next_page`` is the ``page`` after this."""

    rows: list[Row]
    count: int
    next_page: str | None


@dataclass(frozen=True)
class Details:
    """A workflow, what it waits for, and a page of its history."""

    row: Row
    is_running: bool
    parent_id: str | None
    history_length: int
    memo: Mapping[str, Any]
    search_attributes: Mapping[str, Any]
    pending: list[PendingActivity]
    notices: list[str]
    events: list[HistoryEvent]
    next_page: str | None


def visibility_query(filters: Mapping[str, str], now: dt.datetime) -> str:
    """What the server is asked for; ``filters`` are ``status``, ``started``, ``id``, ``type``, ``queue`` and ``query``.

    Unknown statuses and periods count as none. Raises a ``Problem`` for a ``query`` that does not parse.
    """
    clauses: list[Filter] = []
    if status := FILTERS.get(filters.get("status", "")):
        clauses.append(compare("ExecutionStatus", "=", status))
    if period := PERIODS.get(filters.get("started", "")):
        clauses.append(compare("StartTime", ">=", (now - period).strftime("%Y-%m-%dT%H:%M:%SZ")))
    for name, (attribute, operator) in TEXT_FILTERS.items():
        if value := filters.get(name, "").strip():
            clauses.append(compare(attribute, operator, value))
    if query := filters.get("query", "").strip():
        clauses.append(parse(query))
    return write(all_of(*clauses)) if clauses else ""


async def fetch_rows(client: Client, query: str, page: str | None, pages: Pages) -> RowPage:
    """Workflows, the latest first. Raises ``RPCError``, and a ``Problem`` for a ``page`` that is none."""
    found = client.list_workflows(query, page_size=PAGE_SIZE, next_page_token=pages.take(page), rpc_timeout=RPC_TIMEOUT)
    await fetch_page(found)
    count = await client.count_workflows(query, rpc_timeout=RPC_TIMEOUT)
    rows = [_row(execution) for execution in found.current_page or ()]
    return RowPage(rows, count.count, pages.give(found.next_page_token))


async def fetch_details(
    client: Client, handle: WorkflowHandle[Any, Any], page: str | None, pages_of: Callable[[str], Pages]
) -> Details:
    """``pages_of`` makes the page tokens of a run. Raises ``RPCError``, and a ``Problem`` for a wrong ``page``."""
    described = await handle.describe(rpc_timeout=RPC_TIMEOUT)
    pages = pages_of(described.run_id)
    converter = client.data_converter
    events = client.get_workflow_handle(handle.id, run_id=described.run_id).fetch_history_events(
        page_size=HISTORY_PAGE_SIZE, next_page_token=pages.take(page), rpc_timeout=RPC_TIMEOUT
    )
    await events.fetch_next_page()
    brief = Brief(converter)
    return Details(
        row=_row(described),
        is_running=is_open(described.status),
        parent_id=described.parent_id,
        history_length=described.history_length,
        memo=await described.memo(),
        search_attributes={pair.key.name: _shown(pair.value) for pair in described.typed_search_attributes},
        pending=[await pending_activity(each, converter) for each in described.raw_description.pending_activities],
        notices=[notice.text for notice in await _inspector().known_notices(client, described, RPC_TIMEOUT)],
        events=[await brief.event(event) for event in events.current_page or ()],
        next_page=pages.give(events.next_page_token),
    )


def _shown(value: Any) -> Any:
    return value if isinstance(value, str) or not isinstance(value, Sequence) else ", ".join(map(str, value))


def _row(execution: WorkflowExecution) -> Row:
    return Row(
        workflow_id=execution.id,
        run_id=execution.run_id,
        type=execution.workflow_type,
        status=status_of(execution),
        task_queue=execution.task_queue,
        start_time=execution.start_time,
        close_time=execution.close_time,
    )
