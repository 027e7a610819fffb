"""What a run of a workflow is connected with: other runs, parent and children, its page in Temporal's own UI."""

import datetime as dt
import os
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from temporalio.api.history.v1 import HistoryEvent as RawEvent
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowHistoryEventFilterType

from durably.temporal.connection import Temporal
from durably.temporal.errors import TemporalSettingsError

from .conf import connection_settings

DEVELOPMENT_UI = "http://localhost:8233"
CLOUD_UI = "https://cloud.temporal.io"
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_CLOUD_DOMAINS = (".tmprl.cloud", ".api.temporal.io")


@dataclass(frozen=True)
class RunLink:
    """A run to go to. ``relation`` is what it is to the one that is shown; an empty ``run_id`` is the latest run.

    ``namespace`` is that of the other run, if it is another one than this connection's.
    """

    relation: str
    workflow_id: str
    run_id: str
    namespace: str | None = None


def run_links(
    client: Client, described: WorkflowExecutionDescription, start: RawEvent | None, end: RawEvent | None
) -> list[RunLink]:
    """Parent, root, first, previous and next run, and children that run. ``start`` and ``end`` are the run's events."""
    return [link for link in _links(client, described, start, end) if link.run_id != described.run_id]


def _links(
    client: Client, described: WorkflowExecutionDescription, start: RawEvent | None, end: RawEvent | None
) -> Iterator[RunLink]:
    info, own = described.raw_info, described.id
    begun = None if start is None else start.workflow_execution_started_event_attributes
    if described.parent_id:
        namespace = _other_namespace(client, begun.parent_workflow_namespace if begun else "")
        yield RunLink("Parent", described.parent_id, described.parent_run_id or "", namespace)
    root = info.root_execution
    if root.workflow_id not in ("", own, described.parent_id):
        yield RunLink("Root", root.workflow_id, root.run_id)
    if info.first_run_id:
        yield RunLink("First run", own, info.first_run_id)
    if begun is not None and begun.continued_execution_run_id:
        yield RunLink("Previous run", own, begun.continued_execution_run_id)
    if following := _next_run(described, end):
        yield RunLink("Next run", own, following)
    for child in described.raw_description.pending_children:
        yield RunLink("Running child", child.workflow_id, child.run_id)


def _next_run(described: WorkflowExecutionDescription, end: RawEvent | None) -> str:
    attributes = None if end is None else getattr(end, end.WhichOneof("attributes") or "", None)
    return getattr(attributes, "new_execution_run_id", "") or (
        described.raw_description.workflow_extended_info.reset_run_id
    )


def event_link(client: Client, event: RawEvent) -> RunLink | None:
    """The workflow that an event of a history is about: a child, or one that was signalled."""
    attributes = getattr(event, event.WhichOneof("attributes") or "", None)
    other = getattr(attributes, "workflow_execution", None)
    if other is None or not other.workflow_id:
        return None
    namespace = _other_namespace(client, getattr(attributes, "namespace", ""))
    return RunLink("Workflow", other.workflow_id, other.run_id, namespace)


def _other_namespace(client: Client, namespace: str) -> str | None:
    return namespace if namespace and namespace != client.namespace else None


async def first_event(
    client: Client, described: WorkflowExecutionDescription, timeout: dt.timedelta
) -> RawEvent | None:
    """Raises ``RPCError``."""
    return await _one_event(client, described, timeout, WorkflowHistoryEventFilterType.ALL_EVENT)


async def closing_event(
    client: Client, described: WorkflowExecutionDescription, timeout: dt.timedelta
) -> RawEvent | None:
    """Of a run that is closed. Raises ``RPCError``."""
    return await _one_event(client, described, timeout, WorkflowHistoryEventFilterType.CLOSE_EVENT)


async def _one_event(
    client: Client,
    described: WorkflowExecutionDescription,
    timeout: dt.timedelta,
    kind: WorkflowHistoryEventFilterType,
) -> RawEvent | None:
    handle = client.get_workflow_handle(described.id, run_id=described.run_id)
    events = handle.fetch_history_events(page_size=1, event_filter_type=kind, rpc_timeout=timeout)
    await events.fetch_next_page()
    return next(iter(events.current_page or ()), None)


def run_in_ui(temporal: Temporal, connection: str, workflow_id: str, run_id: str) -> str | None:
    """The run's page in Temporal's UI; ``None`` if it is not known where that is."""
    base = ui_url(temporal, connection)
    if base is None:
        return None
    parts = (quote(part, safe="") for part in (temporal.settings.namespace, workflow_id, run_id))
    return "{}/namespaces/{}/workflows/{}/{}/history".format(base.rstrip("/"), *parts)


def ui_url(temporal: Temporal, connection: str) -> str | None:
    """``TEMPORAL_UI_URL``, the setting ``UI_URL``, that of the development server, or Temporal Cloud's.

    Raises ``TemporalSettingsError`` for one that is no web address.
    """
    given = os.environ.get(f"{temporal.variable_prefix}UI_URL") or connection_settings(connection).get("UI_URL")
    if given:
        if not str(given).startswith(("http://", "https://")):
            raise TemporalSettingsError(f"UI_URL for Temporal begins with http:// or https://, and is not {given!r}")
        return str(given)
    host = temporal.settings.address.rpartition(":")[0]
    if host in _LOCAL_HOSTS:
        return DEVELOPMENT_UI
    return CLOUD_UI if host.endswith(_CLOUD_DOMAINS) else None
