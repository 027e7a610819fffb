"""Apps that calls do not reach, because they do not run or do not answer."""

import asyncio
import datetime as dt
import itertools
from collections.abc import Mapping

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.client import Client, WorkflowExecutionDescription

from durably.engine.model.overview import UnreachedApp
from durably.engine.model.runs import RunStatus, to_milliseconds
from durably.engine.temporal.ids import CALL_ID_PREFIX, app_queue, run_id_of
from durably.engine.temporal.messages import AppRecord
from durably.engine.temporal.workflow_requests import is_polled

from .run_lists import RunFilter, RunLists
from .run_views import RunViews

NO_PROCESS = "no process of the app runs its functions"
_SAMPLED = 8
"""Live runs of an app over HTTP that are described, to find calls that another process repeats."""
_CALL_ERRORS = ("CallReturnedError", "ContentUnreadableError")
"""Failure types that are not about the app."""


class UnreachedApps:
    """Finds the apps that calls do not reach.

    ``away`` are the apps over HTTP that calls of this process do not reach. Live runs show calls of other processes.
    """

    def __init__(self, client: Client, lists: RunLists, views: RunViews, away: Mapping[str, UnreachedApp]) -> None:
        self._client = client
        self._lists = lists
        self._views = views
        self._away = away

    async def find_absent(self, apps: list[tuple[str, AppRecord]]) -> set[str]:
        """Apps in process without a running process.

        The server detects it after two minutes at the latest.
        """
        ids = [app_id for app_id, record in apps if record.in_process]
        kind = TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW
        polled = await asyncio.gather(*(is_polled(self._client, app_queue(app_id), kind) for app_id in ids))
        return {app_id for app_id, is_served in zip(ids, polled, strict=True) if not is_served}

    async def find_unreached(self, apps: list[tuple[str, AppRecord]]) -> dict[str, UnreachedApp]:
        """Apps over HTTP that do not answer."""
        found = dict(self._away)
        others = [app_id for app_id, record in apps if not record.in_process and app_id not in found]
        sampled = await asyncio.gather(*map(self._sample, others))
        found |= {app_id: app for app_id, app in zip(others, sampled, strict=True) if app is not None}
        return found

    async def _sample(self, app_id: str) -> UnreachedApp | None:
        live = await self._lists.read(RunFilter(app_id=app_id, status=RunStatus.RUNNING))
        described = await asyncio.gather(
            *(self._views.describe(run_id_of(each.id)) for each in itertools.islice(live, _SAMPLED))
        )
        failed = [
            call
            for each in described
            if isinstance(each, WorkflowExecutionDescription)
            for call in each.raw_description.pending_activities
            if call.activity_id.startswith(CALL_ID_PREFIX)
            and call.HasField("last_failure")
            and call.last_failure.application_failure_info.type not in _CALL_ERRORS
        ]
        if not failed:
            return None
        first = min(failed, key=lambda call: to_milliseconds(call.scheduled_time.ToDatetime(dt.UTC)))
        since = to_milliseconds(first.scheduled_time.ToDatetime(dt.UTC))
        return UnreachedApp(since, first.last_failure.message, sum(call.attempt - 1 for call in failed))
