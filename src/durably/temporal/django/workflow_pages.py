"""What the admin's pages show: pages of workflows by filters, and one workflow with its activities and its history.

Asynchronous, over ``temporalio``'s client; knows no requests and no templates. Inputs, results and memos are read only
for people who may see them.
"""

import datetime as dt
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from temporalio.api.history.v1 import HistoryEvent as RawEvent
from temporalio.client import Client, WorkflowExecution, WorkflowHandle
from temporalio.converter import DataConverter

from durably.temporal.gateway.models import HistoryEvent, PendingActivity
from durably.temporal.gateway.operations.events import Brief
from durably.temporal.gateway.operations.lists import FILTERS, check_searchable, fetch_page, pending_activity, status_of
from durably.temporal.gateway.operations.visibility import Filter, all_of, compare, parse, write
from durably.temporal.gateway.pages import Pages
from durably.temporal.gateway.problems import Problem
from durably.temporal.inspection import Inspector
from durably.temporal.statuses import is_open

from .conf import get_temporal
from .payload_texts import PayloadText, payload_texts
from .workflow_runs import RunLink, closing_event, event_link, first_event, run_links

PAGE_SIZE = 50
HISTORY_PAGE_SIZE = 200
RPC_TIMEOUT = dt.timedelta(seconds=5)

STATUSES = tuple(FILTERS)
PERIODS = {"hour": dt.timedelta(hours=1), "day": dt.timedelta(days=1), "week": dt.timedelta(days=7)}
TEXT_FILTERS = {"id": ("WorkflowId", "STARTS_WITH"), "type": ("WorkflowType", "="), "queue": ("TaskQueue", "=")}
"""Filters that are typed in, and their search attribute and operator."""


@functools.cache
def _inspector(connection: str) -> Inspector:
    return Inspector(get_temporal(connection))


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
class Event:
    """A line of a history, and the workflow that it is about, if it is another one."""

    brief: HistoryEvent
    link: RunLink | None


@dataclass(frozen=True)
class Details:
    """A workflow, what it waits for, and a page of its history. ``payloads`` are inputs and results, by their title.

    These and ``memo`` are empty for people who may not see payloads.
    """

    row: Row
    is_running: bool
    links: list[RunLink]
    history_length: int
    memo: Mapping[str, Any]
    search_attributes: Mapping[str, Any]
    payloads: Mapping[str, list[PayloadText]]
    pending: list[PendingActivity]
    notices: list[str]
    events: list[Event]
    next_page: str | None


@dataclass(frozen=True)
class Search:
    """What the server is asked for, and what is wrong with a filter, by its name."""

    query: str
    problems: Mapping[str, str]


def search(filters: Mapping[str, str], now: dt.datetime) -> Search:
    """``filters`` are ``status``, ``started``, ``id``, ``type``, ``queue`` and ``query``. Unknown statuses and periods
    count as none."""
    clauses: list[Filter] = []
    problems = {}
    if status := FILTERS.get(filters.get("status", "")):
        clauses.append(compare("ExecutionStatus", "=", status))
    if period := PERIODS.get(filters.get("started", "")):
        clauses.append(compare("StartTime", ">=", (now - period).strftime("%Y-%m-%dT%H:%M:%SZ")))
    for name in (*TEXT_FILTERS, "query"):
        if value := filters.get(name, "").strip():
            try:
                clauses.append(_typed_in(name, value))
            except Problem as problem:
                problems[name] = problem.detail
    return Search(write(all_of(*clauses)) if clauses else "", problems)


def _typed_in(name: str, value: str) -> Filter:
    """Raises a ``Problem`` for what does not parse."""
    if name not in TEXT_FILTERS:
        return parse(value)
    attribute, operator = TEXT_FILTERS[name]
    return compare(attribute, operator, value)


async def fetch_rows(client: Client, query: str, page: str | None, pages: Pages) -> RowPage:
    """Workflows, the latest first. Raises ``RPCError``, and ``Problem`` if ``page`` is not a valid page token."""
    found = client.list_workflows(query, page_size=PAGE_SIZE, next_page_token=pages.take(page), rpc_timeout=RPC_TIMEOUT)
    await check_searchable(client, query, RPC_TIMEOUT)
    await fetch_page(found)
    count = await client.count_workflows(query, rpc_timeout=RPC_TIMEOUT)
    rows = [row_of(execution) for execution in found.current_page or ()]
    return RowPage(rows, count.count, pages.give(found.next_page_token))


async def fetch_details(
    client: Client,
    handle: WorkflowHandle[Any, Any],
    page: str | None,
    pages_of: Callable[[str], Pages],
    *,
    connection: str,
    with_payloads: bool,
) -> Details:
    """``pages_of`` makes the page tokens of a run. Raises ``RPCError``, and a ``Problem`` for a wrong ``page``."""
    described = await handle.describe(rpc_timeout=RPC_TIMEOUT)
    pages = pages_of(described.run_id)
    converter = client.data_converter
    events = client.get_workflow_handle(handle.id, run_id=described.run_id).fetch_history_events(
        page_size=HISTORY_PAGE_SIZE, next_page_token=pages.take(page), rpc_timeout=RPC_TIMEOUT
    )
    await events.fetch_next_page()
    found = events.current_page or ()
    start = await first_event(client, described, RPC_TIMEOUT) if page else next(iter(found), None)
    is_running = is_open(described.status)
    end = None if is_running else await closing_event(client, described, RPC_TIMEOUT)
    brief = Brief(converter)
    return Details(
        row=row_of(described),
        is_running=is_running,
        links=run_links(client, described, start, end),
        history_length=described.history_length,
        memo=await described.memo() if with_payloads else {},
        search_attributes={pair.key.name: _shown(pair.value) for pair in described.typed_search_attributes},
        payloads=await _payloads(converter, start, end) if with_payloads else {},
        pending=[await pending_activity(each, converter) for each in described.raw_description.pending_activities],
        notices=[notice.text for notice in await _inspector(connection).known_notices(client, described, RPC_TIMEOUT)],
        events=[Event(await brief.event(event), event_link(client, event)) for event in found],
        next_page=pages.give(events.next_page_token),
    )


async def _payloads(
    converter: DataConverter, start: RawEvent | None, end: RawEvent | None
) -> Mapping[str, list[PayloadText]]:
    found = {}
    if start is not None:
        given = start.workflow_execution_started_event_attributes.input.payloads
        found["Input"] = await payload_texts(converter, given)
    if end is not None and end.HasField("workflow_execution_completed_event_attributes"):
        given = end.workflow_execution_completed_event_attributes.result.payloads
        found["Result"] = await payload_texts(converter, given)
    return found


def _shown(value: Any) -> Any:
    return value if isinstance(value, str) or not isinstance(value, Sequence) else ", ".join(map(str, value))


def row_of(execution: WorkflowExecution) -> Row:
    return Row(
        workflow_id=execution.id,
        run_id=execution.run_id,
        type=execution.workflow_type,
        status=status_of(execution),
        task_queue=execution.task_queue,
        start_time=execution.start_time,
        close_time=execution.close_time,
    )
