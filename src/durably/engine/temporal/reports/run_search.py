"""Searches of runs with conditions that need their events and outputs."""

import datetime as dt
import re
from collections.abc import Collection
from typing import Any

import msgspec
from temporalio.client import WorkflowExecution

from durably.engine.core.expressions import Expression
from durably.engine.model.runs import MatchCount, Run, RunPage, RunStatus
from durably.engine.temporal.ids import run_id_of
from durably.engine.temporal.workflow_code import wall_clock
from durably.protocol.engine_errors import NotSupportedError, SelectionInvalidError

from .run_lists import RunFilter, RunLists
from .run_views import RunViews, memo_of, status_of

_MOST_EVALUATED = 200
"""Maximum number of runs whose events are read for one page of a search."""
_MOST_OF_SUFFIX = 10_000
"""Maximum number of runs whose ids are compared for one list."""
_MOST_COUNTED = 2_000
"""Maximum number of runs whose events are read for one count."""
_LONGEST_OUTPUT = 16 * 1024
_WHOLE_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}\Z")


class RunSearch:
    def __init__(self, lists: RunLists, views: RunViews) -> None:
        self._lists = lists
        self._views = views

    async def list_runs(
        self, wanted: RunFilter, limit: int, cursor: str | None = None, id_suffix: str | None = None
    ) -> list[Run]:
        """A page of runs. Raises ``NotSupportedError`` if too many runs must be compared."""
        found: list[WorkflowExecution] = []
        seen = 0
        async for each in self._lists.walk(wanted, await self._position(cursor)):
            seen += 1
            if id_suffix is None or each.id.endswith(id_suffix):
                found.append(each)
            if len(found) == limit:
                break
            if seen == _MOST_OF_SUFFIX and id_suffix is not None:
                raise NotSupportedError(
                    f"an engine on Temporal finds id suffixes among its {_MOST_OF_SUFFIX} newest runs only, and there "
                    f"are more: give the whole id instead of {id_suffix!r}, or search for its prefix"
                )
        return await self._views.views(found)

    async def search(
        self, wanted: RunFilter, condition: Expression | None, id: str | None, limit: int, cursor: str | None
    ) -> RunPage:
        if id is not None:
            return await self._search_by_id(wanted, condition, id.strip(), limit, cursor)
        return await self._page(wanted, condition, limit, cursor)

    async def count(
        self, wanted: RunFilter, statuses: Collection[RunStatus], condition: Expression | None
    ) -> MatchCount:
        if condition is None:
            counts = [
                await self._lists.count(msgspec.structs.replace(wanted, status=status))
                for status in {_listed(status) for status in statuses}
            ]
            return MatchCount(count=sum(counts), is_complete=True)
        now, count = wall_clock(), 0
        accepted = {_listed(status) for status in statuses}
        seen = 0
        async for each in self._lists.walk(wanted):
            if status_of(each) not in accepted:
                continue
            if seen == _MOST_COUNTED:
                return MatchCount(count=count, is_complete=False)
            seen += 1
            count += await self.matches(each, condition, now)
        return MatchCount(count=count, is_complete=True)

    async def matches(self, execution: WorkflowExecution, condition: Expression, now: int) -> bool:
        """Whether a condition matches a run's event and output."""
        run_id = run_id_of(execution.id)
        run = await self._views.input(run_id)
        if run is None:
            return False
        output = None
        if status_of(execution).has_ended:
            output = msgspec.json.decode(await self._views.output(run_id))
        fields: dict[str, Any] = msgspec.json.decode(run.events[0].body)
        return condition.matches(fields, output, now=now)

    async def _page(self, wanted: RunFilter, condition: Expression | None, limit: int, cursor: str | None) -> RunPage:
        now = wall_clock()
        found: list[WorkflowExecution] = []
        last: WorkflowExecution | None = None
        seen = 0
        async for each in self._lists.walk(wanted, await self._position(cursor)):
            if len(found) == limit or (condition is not None and seen == _MOST_EVALUATED):
                assert last is not None
                searched_until = None if len(found) == limit else last.start_time
                return await self._to_page(found, run_id_of(last.id), searched_until)
            seen, last = seen + 1, each
            if condition is None or await self.matches(each, condition, now):
                found.append(each)
        return await self._to_page(found, None)

    async def _search_by_id(
        self, wanted: RunFilter, condition: Expression | None, id: str, limit: int, cursor: str | None
    ) -> RunPage:
        text = id.upper()
        if _WHOLE_ID.match(text) is not None:
            run = await self._views.describe(text)
            if run is not None and await self._fits(run, wanted):
                return await self._to_page([run], None)
            return await self._page(msgspec.structs.replace(wanted, event_id=text), condition, limit, cursor)
        if not (text.isascii() and text.isalnum()):
            return RunPage(runs=[], cursor=None)
        page = await self._page(msgspec.structs.replace(wanted, id_prefix=text), condition, limit, cursor)
        if page.runs or page.cursor is not None:
            return page
        runs = await self.list_runs(wanted, limit, cursor, text)
        return RunPage(runs=runs, cursor=runs[-1].id if len(runs) == limit else None)

    async def _fits(self, execution: WorkflowExecution, wanted: RunFilter) -> bool:
        memo = await memo_of(execution)
        return all(
            each in (None, own)
            for each, own in (
                (wanted.status, status_of(execution)),
                (wanted.function_id, memo.function_id),
                (wanted.app_id, memo.app_id),
                (wanted.event_name, memo.event_name),
            )
        )

    async def _to_page(
        self, found: list[WorkflowExecution], cursor: str | None, searched_until: dt.datetime | None = None
    ) -> RunPage:
        runs = [_shortened(run) for run in await self._views.views(found)]
        return RunPage(runs=runs, cursor=cursor, searched_until=searched_until)

    async def _position(self, cursor: str | None) -> WorkflowExecution | None:
        if cursor is None:
            return None
        described = await self._views.describe(cursor)
        if described is None:
            raise SelectionInvalidError(
                f"the cursor {cursor!r} does not name a run of this engine (any more): begin again"
            )
        return described


def _listed(status: RunStatus) -> RunStatus:
    """The status that lists use for a status."""
    return RunStatus.RUNNING if status is RunStatus.SCHEDULED else status


def _shortened(run: Run) -> Run:
    if run.output is None or len(bytes(run.output)) <= _LONGEST_OUTPUT:
        return run
    return msgspec.structs.replace(run, output=None)
