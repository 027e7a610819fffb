"""Loads of functions and numbers of runs over time, counted in Temporal's index."""

import asyncio
import datetime as dt
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from temporalio.client import Client, WorkflowExecution

from durably.engine.core.run_state import RunStatus
from durably.engine.model.overview import (
    AppReport,
    Concern,
    FunctionInfo,
    FunctionLoad,
    FunctionReport,
    Overview,
    SyncReport,
)
from durably.engine.model.runs import to_datetime, to_milliseconds, to_optional_milliseconds
from durably.engine.sqlite import concerns
from durably.engine.sqlite.overviews import Axis, plan_axis, run_counts
from durably.engine.sqlite.queries.functions import percentile
from durably.engine.sqlite.queries.loads import SkippedRuns
from durably.engine.sqlite.tables.counts import COLUMNS, CREATED, ENDS, HOUR, MINUTE
from durably.engine.temporal.ids import run_id_of

from .function_lists import FunctionLists, app_view
from .run_lists import RunFilter, RunLists, format_time
from .run_views import is_run, memo_of, status_of
from .unreached_apps import NO_PROCESS, UnreachedApps

_MOST_READ = 5_000
"""Maximum number of runs that are read one by one for a report. The index counts more runs in longer intervals."""
_MOST_INTERVALS, _MOST_OF_FUNCTION, _MOST_COUNTED_INTERVALS = 120, 30, 24
_MOST_AT_ONCE = 8
_SAMPLED = 100
_KEPT_SECONDS = 2.0
"""Seconds for which counts are cached, because several pages may request them."""

Counts = dict[str, dict[int, list[int]]]
"""Numbers of runs (see ``COLUMNS``) by function and minute."""
Replayed = dict[str, dict[int, int]]
"""Numbers of failed runs with a completed rerun, by function and the interval of the failure."""


class Loads:
    def __init__(self, client: Client, functions: FunctionLists, lists: RunLists, unreached: UnreachedApps) -> None:
        self._client = client
        self._functions = functions
        self._lists = lists
        self._unreached = unreached
        self._slots = asyncio.Semaphore(_MOST_AT_ONCE)
        self._kept: dict[tuple[int, int, str | None], tuple[float, list[WorkflowExecution] | None]] = {}

    async def overview(self, since: dt.datetime | None, until: dt.datetime | None, now: int) -> Overview:
        times = to_optional_milliseconds(since), to_optional_milliseconds(until)
        axis = plan_axis(*times, now, _MOST_INTERVALS)
        runs = await self._runs(axis)
        if runs is None:
            axis = plan_axis(*times, now, _MOST_COUNTED_INTERVALS)
            total, replayed = await self._counted(axis, None), Replayed()
        else:
            total, replayed = _sum((await _count(runs, axis)).values()), await _count_replayed(runs, axis)
        functions = await self.function_loads(since, until, now)
        hour = Axis(now // MINUTE - HOUR + 1, now // MINUTE + 1, HOUR)
        last_hour = await self._counts(hour, [function.function_id for function in functions])
        replayed_since = await _count_replayed(await self._runs(hour) or [], hour)
        return Overview(
            since=to_datetime(axis.since * MINUTE),
            until=to_datetime(axis.until * MINUTE),
            interval_seconds=axis.step * 60,
            counts=run_counts([total], axis, replayed.values()),
            live={RunStatus.RUNNING: sum(function.live for function in functions)},
            functions=functions,
            concerns=[
                *await self._unreached_concerns(functions),
                *concerns.failing_functions(last_hour, replayed_since),
                *concerns.paused_functions(await self._skipped()),
            ],
        )

    async def _unreached_concerns(self, loads: list[FunctionLoad]) -> list[Concern]:
        apps = await self._functions.app_records()
        live = {load.function_id: load.live for load in loads}
        absent = await self._unreached.find_absent(apps)
        waiting = {
            app_id: sum(live.get(function_id, 0) for function_id in record.functions)
            for app_id, record in apps
            if app_id in absent
        }
        unreached = await self._unreached.find_unreached(apps)
        return [*concerns.absent_apps(waiting), *concerns.unreached_apps(unreached)]

    async def _skipped(self) -> list[SkippedRuns]:
        """The runs that paused functions have skipped."""
        paused = await self._functions.paused()
        counts = await asyncio.gather(
            *(
                self._number(RunFilter(function_id=each, status=RunStatus.SKIPPED, started_after=to_datetime(at)))
                for each, at in paused
            )
        )
        return [SkippedRuns(each, at, count) for (each, at), count in zip(paused, counts, strict=True)]

    async def app_reports(self) -> list[AppReport]:
        """Apps with their last syncs, and whether they answer."""
        apps = await self._functions.app_records()
        absent = await self._unreached.find_absent(apps)
        unreached = await self._unreached.find_unreached(apps)
        reports = []
        for app_id, record in apps:
            away = unreached.get(app_id)
            error = NO_PROCESS if app_id in absent else None
            reports.append(
                AppReport(
                    app=app_view(app_id, record),
                    last_sync=SyncReport(
                        at=to_datetime(record.synced_at),
                        error=record.error,
                        added=record.added,
                        changed=record.changed,
                        removed=record.removed,
                    ),
                    unreached_since=None if away is None else to_datetime(away.since),
                    unreached_error=error if away is None else away.error,
                )
            )
        return reports

    async def function_loads(
        self, since: dt.datetime | None, until: dt.datetime | None, now: int, function_id: str | None = None
    ) -> list[FunctionLoad]:
        axis = plan_axis(to_optional_milliseconds(since), to_optional_milliseconds(until), now, _MOST_OF_FUNCTION)
        ids = [view.id for view in await self._functions.functions()] if function_id is None else [function_id]
        runs = await self._runs(axis, function_id)
        if runs is None:
            axis = Axis(axis.since, axis.until, axis.until - axis.since)
        counts = await self._counts(axis, ids, function_id)
        replayed = await _count_replayed(runs or [], axis)
        live = await self.live(ids)
        return [
            FunctionLoad(
                function_id=each,
                backlog=None,
                queue_delay=None,
                in_flight=None,
                live=live[each],
                counts=run_counts([counts.get(each, {})], axis, [replayed.get(each, {})]),
            )
            for each in sorted({*ids, *counts})
        ]

    async def function_report(self, function: FunctionInfo, since: dt.datetime | None, now: int) -> FunctionReport:
        """A function's report. It has no step durations: only histories of runs have them."""
        (load,) = await self.function_loads(since, None, now, function.id)
        durations: list[float] = []
        async for each in self._lists.walk(RunFilter(function_id=function.id)):
            if each.close_time is not None and status_of(each) in (RunStatus.COMPLETED, RunStatus.FAILED):
                durations.append((each.close_time - each.start_time).total_seconds())
            if len(durations) == _SAMPLED:
                break
        return FunctionReport(
            function=function,
            load=load,
            steps=[],
            sampled=len(durations),
            p50=percentile(durations, 0.5) if durations else None,
            p95=percentile(durations, 0.95) if durations else None,
        )

    async def live(self, function_ids: list[str]) -> Counter[str]:
        """Numbers of live runs by function, with one count request each."""
        numbers = await asyncio.gather(
            *(self._number(RunFilter(function_id=each, status=RunStatus.RUNNING)) for each in function_ids)
        )
        return Counter(dict(zip(function_ids, numbers, strict=True)))

    async def _number(self, wanted: RunFilter) -> int:
        async with self._slots:
            return await self._lists.count(wanted)

    async def _counts(self, axis: Axis, function_ids: list[str], function_id: str | None = None) -> Counts:
        """Numbers of runs by function and interval."""
        runs = await self._runs(axis, function_id)
        if runs is not None:
            return await _count(runs, axis)
        counted = await asyncio.gather(*(self._counted(axis, each) for each in function_ids))
        return dict(zip(function_ids, counted, strict=True))

    async def _runs(self, axis: Axis, function_id: str | None = None) -> list[WorkflowExecution] | None:
        """The runs that began or ended on the axis.

        Returns ``None`` if there are too many to read.
        """
        key = axis.since, axis.until, function_id
        kept = self._kept.get(key)
        if kept is not None and kept[0] > time.monotonic():
            return kept[1]
        since, until = to_datetime(axis.since * MINUTE), to_datetime(axis.until * MINUTE)
        wanted = RunFilter(function_id=function_id)
        query = " OR ".join(
            f"({condition} >= {format_time(since)} AND {condition} < {format_time(until)})"
            for condition in ("StartTime", "CloseTime")
        )
        query = f"{wanted.query} AND ({query})"
        runs = None
        if (await self._client.count_workflows(query)).count <= _MOST_READ:
            runs = [each async for each in self._client.list_workflows(query) if is_run(each)]
        self._kept = {each: found for each, found in self._kept.items() if found[0] > time.monotonic()}
        self._kept[key] = time.monotonic() + _KEPT_SECONDS, runs
        return runs

    async def _counted(self, axis: Axis, function_id: str | None) -> dict[int, list[int]]:
        """Numbers of runs by interval, counted by the index."""
        counts = {minute: [0] * len(COLUMNS) for minute in axis.minutes}

        async def count(minute: int, column: int, wanted: RunFilter) -> None:
            counts[minute][column] = await self._number(wanted)

        tasks = []
        for minute in axis.minutes:
            since, until = to_datetime(minute * MINUTE), to_datetime((minute + axis.step) * MINUTE)
            started = RunFilter(function_id=function_id, started_after=since, started_before=until)
            tasks.append(count(minute, CREATED, started))
            for status, column in ENDS.items():
                ended = RunFilter(function_id=function_id, status=status, ended_after=since, ended_before=until)
                tasks.append(count(minute, column, ended))
        await asyncio.gather(*tasks)
        return counts


async def _count(runs: list[WorkflowExecution], axis: Axis) -> Counts:
    counts: Counts = defaultdict(lambda: defaultdict(lambda: [0] * len(COLUMNS)))
    for each in runs:
        function_id = (await memo_of(each)).function_id
        _note(counts[function_id], axis, to_milliseconds(each.start_time), CREATED)
        column = ENDS.get(status_of(each))
        if each.close_time is not None and column is not None:
            _note(counts[function_id], axis, to_milliseconds(each.close_time), column)
    return counts


async def _count_replayed(runs: list[WorkflowExecution], axis: Axis) -> Replayed:
    """The failed runs among ``runs`` that have a completed rerun.

    A rerun of a rerun counts for both. The index cannot count them, so there are none if there are too many runs.
    """
    found = {run_id_of(each.id): each for each in runs}
    pending = [each for each in runs if status_of(each) is RunStatus.COMPLETED]
    replayed: Replayed = {}
    while pending:
        original = found.pop((await memo_of(pending.pop())).rerun_of or "", None)
        if original is None:
            continue
        pending.append(original)
        minute = to_milliseconds(original.close_time) // MINUTE if original.close_time is not None else axis.until
        if status_of(original) is RunStatus.FAILED and axis.since <= minute < axis.until:
            of_function = replayed.setdefault((await memo_of(original)).function_id, {})
            interval = axis.interval_of(minute)
            of_function[interval] = of_function.get(interval, 0) + 1
    return replayed


def _note(counts: dict[int, list[int]], axis: Axis, at: int, column: int) -> None:
    minute = at // MINUTE
    if axis.since <= minute < axis.until:
        counts[axis.interval_of(minute)][column] += 1


def _sum(all_counts: Iterable[Mapping[int, list[int]]]) -> dict[int, list[int]]:
    total: dict[int, list[int]] = defaultdict(lambda: [0] * len(COLUMNS))
    for counts in all_counts:
        for minute, numbers in counts.items():
            total[minute] = [a + b for a, b in zip(total[minute], numbers, strict=True)]
    return total
