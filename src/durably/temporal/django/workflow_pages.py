"""The admin's pages about workflows.

They are a list with filters, and a page of one workflow with its activities, history and links.

Asynchronous, over ``temporalio``'s client, without requests and templates. Inputs, results and memos are read only for
users with the permission. They are decoded, decrypted, and bounded in size.
"""

import contextlib
import datetime as dt
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError
from temporalio.api.common.v1 import Payload
from temporalio.api.history.v1 import HistoryEvent as RawEvent
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionDescription,
    WorkflowHandle,
    WorkflowHistoryEventFilterType,
)
from temporalio.common import SearchAttributeKey
from temporalio.converter import DataConverter
from temporalio.service import RPCError

from durably.temporal.client.connection import Temporal
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.gateway.events import Brief
from durably.temporal.gateway.lists import SERVER_STATUSES, condition, pending_activities
from durably.temporal.gateway.messages import HistoryEvent, PendingActivity
from durably.temporal.gateway.problems import Problem
from durably.temporal.gateway.services import Pages
from durably.temporal.namespace import is_open, missing_worker

from .conf import connection_settings

MAX_BYTES = 256 * 1024
"""Maximum size of a decoded payload. The server accepts two megabytes."""

MAX_CHARACTERS = 10_000
"""Maximum length of a shown text."""


@dataclass(frozen=True)
class PayloadText:
    """The text of a payload.

    ``note`` names the missing part of ``text``, or the reason why there is no text.
    """

    text: str
    note: str | None = None


async def payload_text(converter: DataConverter, payload: Payload) -> PayloadText:
    """The text of a payload. The note of an unreadable payload has the reason."""
    if payload.ByteSize() > MAX_BYTES:
        return PayloadText("", f"{payload.ByteSize():,} bytes: too large to show")
    try:
        [value] = await converter.decode([payload])
        is_bytes = isinstance(value, bytes)
        text = f"{len(value):,} bytes" if is_bytes else json.dumps(value, indent=2, ensure_ascii=False, default=str)
    except Exception as error:
        return PayloadText("", f"it cannot be decoded: {type(error).__name__}: {error}"[:1000])
    if len(text) > MAX_CHARACTERS:
        return PayloadText(text[:MAX_CHARACTERS], f"the first {MAX_CHARACTERS:,} of {len(text):,} characters")
    return PayloadText(text)


DEVELOPMENT_UI = "http://localhost:8233"
CLOUD_UI = "https://cloud.temporal.io"
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_CLOUD_DOMAINS = (".tmprl.cloud", ".api.temporal.io")


@dataclass(frozen=True)
class RunLink:
    """A related run, such as the parent. An empty ``run_id`` is the latest run.

    ``namespace`` is set if it is not the connection's.
    """

    relation: str
    workflow_id: str
    run_id: str
    namespace: str | None = None


def run_links(
    client: Client, described: WorkflowExecutionDescription, start: RawEvent | None, end: RawEvent | None
) -> Iterator[RunLink]:
    """Parent, root, first, previous and next run, and running children.

    ``start`` and ``end`` are the run's events.
    """
    info, own, raw = described.raw_info, described.id, described.raw_description
    begun = None if start is None else start.workflow_execution_started_event_attributes
    ended = None if end is None else getattr(end, end.WhichOneof("attributes") or "", None)
    if described.parent_id:
        namespace = _other_namespace(client, begun.parent_workflow_namespace if begun else "")
        yield RunLink("Parent", described.parent_id, described.parent_run_id or "", namespace)
    root = info.root_execution
    if root.workflow_id not in ("", own, described.parent_id):
        yield RunLink("Root", root.workflow_id, root.run_id)
    runs = {
        "First run": info.first_run_id,
        "Previous run": begun.continued_execution_run_id if begun else "",
        "Next run": getattr(ended, "new_execution_run_id", "") or raw.workflow_extended_info.reset_run_id,
    }
    for relation, run_id in runs.items():
        if run_id not in ("", described.run_id):
            yield RunLink(relation, own, run_id)
    for child in raw.pending_children:
        yield RunLink("Running child", child.workflow_id, child.run_id)


def event_link(client: Client, event: RawEvent) -> RunLink | None:
    """The workflow that an event names: a child, or the target of a signal."""
    attributes = getattr(event, event.WhichOneof("attributes") or "", None)
    other = getattr(attributes, "workflow_execution", None)
    if other is None or not other.workflow_id:
        return None
    namespace = _other_namespace(client, getattr(attributes, "namespace", ""))
    return RunLink("Workflow", other.workflow_id, other.run_id, namespace)


def _other_namespace(client: Client, namespace: str) -> str | None:
    return namespace if namespace and namespace != client.namespace else None


async def _one_event(
    client: Client, described: WorkflowExecutionDescription, kind: WorkflowHistoryEventFilterType
) -> RawEvent | None:
    """The first event of a run, or the last one of a closed run. Raises ``RPCError``."""
    handle = client.get_workflow_handle(described.id, run_id=described.run_id)
    events = handle.fetch_history_events(page_size=1, event_filter_type=kind, rpc_timeout=RPC_TIMEOUT)
    await events.fetch_next_page()
    return next(iter(events.current_page or ()), None)


def run_in_ui(temporal: Temporal, connection: str, workflow_id: str, run_id: str) -> str | None:
    """The run's page in Temporal's UI, or ``None`` if the UI's address is unknown."""
    base = ui_url(temporal, connection)
    if base is None:
        return None
    parts = (quote(part, safe="") for part in (temporal.settings.namespace, workflow_id, run_id))
    return "{}/namespaces/{}/workflows/{}/{}/history".format(base.rstrip("/"), *parts)


def ui_url(temporal: Temporal, connection: str) -> str | None:
    """The address of Temporal's web UI.

    It is ``TEMPORAL_UI_URL``, the setting ``UI_URL``, or the UI of the development server or Temporal Cloud.

    Raises ``TemporalSettingsError`` for a setting that is not a web address.
    """
    given = os.environ.get(f"{temporal.variable_prefix}UI_URL") or connection_settings(connection).get("UI_URL")
    if given:
        if not str(given).startswith(("http://", "https://")):
            raise TemporalSettingsError(f"UI_URL for Temporal must begin with http:// or https://, not {given!r}")
        return str(given)
    host = temporal.settings.address.rpartition(":")[0]
    if host in _LOCAL_HOSTS:
        return DEVELOPMENT_UI
    return CLOUD_UI if host.endswith(_CLOUD_DOMAINS) else None


_Filter = WorkflowHistoryEventFilterType

PAGE_SIZE = 50
HISTORY_PAGE_SIZE = 200
RPC_TIMEOUT = dt.timedelta(seconds=5)

STATUSES = tuple(SERVER_STATUSES)
PERIODS = {"hour": dt.timedelta(hours=1), "day": dt.timedelta(days=1), "week": dt.timedelta(days=7)}
TEXT_FILTERS = {"id": ("WorkflowId", "STARTS_WITH"), "type": ("WorkflowType", "="), "queue": ("TaskQueue", "=")}
"""Text filters, and the search attribute and operator of each."""
ATTRIBUTE_FILTER = ("attribute", "value")
"""A search attribute, and the value that it is equal to."""


@dataclass(frozen=True)
class RowPage:
    """A page of the list of workflows.

    ``count`` is the approximate number of workflows on all pages. ``next_page`` is the page token.
    """

    rows: list[WorkflowExecution]
    count: int
    next_page: str | None


@dataclass(frozen=True)
class Details:
    """A workflow, its pending activities, and a page of its history.

    ``payloads`` are inputs and results, by title. ``payloads`` and ``memo`` are empty for users who may not see
    payloads. ``events`` have the other workflow that each names, if any.
    """

    workflow: WorkflowExecutionDescription
    is_running: bool
    links: list[RunLink]
    memo: Mapping[str, Any]
    search_attributes: Mapping[str, Any]
    payloads: Mapping[str, list[PayloadText]]
    pending: list[PendingActivity]
    missing_worker: str | None
    events: list[tuple[HistoryEvent, RunLink | None]]
    next_page: str | None


def search(
    filters: Mapping[str, str], now: dt.datetime, declared: Iterable[SearchAttributeKey[Any]] = ()
) -> tuple[str, dict[str, str]]:
    """A list filter for the server, and the problems of filters of the list page by their names.

    ``filters`` are ``status``, ``started``, ``id``, ``type``, ``queue``, ``attribute`` and ``value``. Unknown statuses
    and periods are ignored. ``declared`` are the search attributes whose types are known; the others are Keywords.
    """
    clauses: list[str] = []
    problems: dict[str, str] = {}
    if status := SERVER_STATUSES.get(filters.get("status", "")):
        clauses.append(condition("ExecutionStatus", "=", status))
    if period := PERIODS.get(filters.get("started", "")):
        clauses.append(condition("StartTime", ">=", now - period))
    given = {name: (*TEXT_FILTERS[name], filters.get(name, "").strip()) for name in TEXT_FILTERS}
    given["value"] = (filters.get("attribute", "").strip(), "=", filters.get("value", "").strip())
    key = next((each for each in declared if each.name == given["value"][0]), None)
    for name, (attribute, operator, text) in given.items():
        if not attribute or not text:
            continue
        try:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", attribute):
                problems["attribute"] = "the name of a search attribute has letters, digits and _"
                continue
            kind = key.origin_value_type if name == "value" and key is not None else str
            is_text = kind is str and key is not None and key.indexed_value_type.name == "TEXT"
            value: Any = TypeAdapter(kind).validate_strings(text) if kind in _PARSED else text
            clauses.append(condition(attribute, operator, value, is_text=is_text))
        except ValidationError as error:
            problems[name] = f"{attribute}: {error.errors()[0]['msg']}"
        except Problem as problem:
            problems[name] = problem.detail
    return " AND ".join(clauses), problems


_PARSED = (int, float, bool)


async def fetch_rows(client: Client, query: str, page: str | None, pages: Pages) -> RowPage:
    """Workflows, the latest first.

    Raises ``RPCError``, and ``Problem`` if ``page`` is not a valid page token.
    """
    found = client.list_workflows(query, page_size=PAGE_SIZE, next_page_token=pages.take(page), rpc_timeout=RPC_TIMEOUT)
    await found.fetch_next_page()
    count = await client.count_workflows(query, rpc_timeout=RPC_TIMEOUT)
    return RowPage(list(found.current_page or ()), count.count, pages.give(found.next_page_token))


async def fetch_details(
    client: Client,
    handle: WorkflowHandle[Any, Any],
    page: str | None,
    pages_of: Callable[[str], Pages],
    *,
    with_payloads: bool,
) -> Details:
    """The details of a workflow run.

    ``pages_of`` makes the page tokens of a run. Raises ``RPCError``, and a ``Problem`` for a wrong ``page``.
    """
    described = await handle.describe(rpc_timeout=RPC_TIMEOUT)
    pages = pages_of(described.run_id)
    converter = client.data_converter
    events = client.get_workflow_handle(handle.id, run_id=described.run_id).fetch_history_events(
        page_size=HISTORY_PAGE_SIZE, next_page_token=pages.take(page), rpc_timeout=RPC_TIMEOUT
    )
    await events.fetch_next_page()
    found = events.current_page or ()
    start = await _one_event(client, described, _Filter.ALL_EVENT) if page else next(iter(found), None)
    is_running = is_open(described.status)
    end = None if is_running else await _one_event(client, described, _Filter.CLOSE_EVENT)
    missing = None
    if is_running:
        with contextlib.suppress(RPCError):  # The page shows what the server answers.
            missing = await missing_worker(client, described.task_queue, RPC_TIMEOUT)
    brief = Brief(converter)
    return Details(
        workflow=described,
        is_running=is_running,
        links=list(run_links(client, described, start, end)),
        memo=await described.memo() if with_payloads else {},
        search_attributes={
            pair.key.name: ", ".join(pair.value) if isinstance(pair.value, list) else pair.value
            for pair in described.typed_search_attributes
        },
        payloads=await _payloads(converter, start, end) if with_payloads else {},
        pending=await pending_activities(described),
        missing_worker=missing,
        events=[(await brief.event(event), event_link(client, event)) for event in found],
        next_page=pages.give(events.next_page_token),
    )


async def _payloads(
    converter: DataConverter, start: RawEvent | None, end: RawEvent | None
) -> Mapping[str, list[PayloadText]]:
    found = {}
    if start is not None:
        found["Input"] = start.workflow_execution_started_event_attributes.input.payloads
    if end is not None and end.HasField("workflow_execution_completed_event_attributes"):
        found["Result"] = end.workflow_execution_completed_event_attributes.result.payloads
    return {title: [await payload_text(converter, each) for each in payloads] for title, payloads in found.items()}
