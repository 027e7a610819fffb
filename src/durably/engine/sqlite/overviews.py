"""Overviews: loads of functions, runs over time, and items that need attention."""

import datetime as dt
import itertools
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from durably.engine.core.run_state import RunStatus
from durably.engine.model.overview import (
    App,
    Concern,
    FunctionInfo,
    FunctionLoad,
    FunctionReport,
    OutboxReport,
    Overview,
    RunCounts,
    ScheduleInfo,
)
from durably.engine.model.runs import to_datetime, to_optional_milliseconds
from durably.engine.model.settings import Clock
from durably.engine.sqlite.queries import loads
from durably.engine.sqlite.queries.functions import (
    list_apps,
    percentile,
    planned_schedules,
    sample_durations,
    sum_usage_since,
)
from durably.engine.sqlite.queries.loads import QueuedLoad
from durably.engine.sqlite.queries.runs import awaited_names
from durably.engine.sqlite.reader import Reader
from durably.engine.sqlite.statistics import (
    COLUMNS,
    DAY,
    DAYS_KEPT,
    FAILED,
    HOUR,
    MINUTE,
    MINUTES_FOR,
    QUARTER,
    QUARTERS_FOR,
)
from durably.engine.sqlite.writer import Transactions
from durably.protocol.engine_errors import SelectionInvalidError

from .call_dispatch import CallDispatcher
from .call_queue import CallLoad
from .statistics import Statistics

_STEPS = (1, 5, QUARTER, HOUR, 3 * HOUR, 6 * HOUR, DAY)
_MOST_INTERVALS, _MOST_OF_FUNCTION = 150, 30
_MOST_CONCERNS = 100
_MOST_TICKS = 5


class Axis(msgspec.Struct, frozen=True):
    """Intervals of ``step`` minutes from the minute ``since`` until before ``until``."""

    since: int
    until: int
    step: int

    @property
    def minutes(self) -> range:
        return range(self.since, self.until, self.step)

    def interval_of(self, minute: int) -> int:
        """The first minute of the interval of ``minute``."""
        return self.since + (minute - self.since) // self.step * self.step


def plan_axis(since: int | None, until: int | None, now: int, most: int) -> Axis:
    """The intervals of a time range, at most ``most`` and two.

    Times are milliseconds since the epoch; by default the last 24 hours. Intervals are no shorter than those of the
    stored counts, and begin at multiples of their length. Raises ``SelectionInvalidError``.
    """
    end = now if until is None else min(until, now)
    start = end - DAY * MINUTE if since is None else since
    if start >= end:
        raise SelectionInvalidError("since must be before until, which is now by default")
    first = max(start // MINUTE, now // MINUTE - DAYS_KEPT * DAY)
    last = max(-(-end // MINUTE), first + 1)
    age = now // MINUTE - first
    least = HOUR if age > QUARTERS_FOR - HOUR else QUARTER if age > MINUTES_FOR - QUARTER else 1
    fitting = (step for step in _STEPS if step >= least and (last - first) <= step * most)
    step = next(fitting, _STEPS[-1])
    return Axis(first // step * step, -(-last // step) * step, step)


class Overviews:
    """Reads the load and the counts of an engine."""

    def __init__(
        self,
        reader: Reader,
        transactions: Transactions,
        call_dispatcher: CallDispatcher,
        statistics: Statistics,
        clock: Clock,
    ) -> None:
        self._reader = reader
        self._transactions = transactions
        self._call_dispatcher = call_dispatcher
        self._statistics = statistics
        self._clock = clock
        self.outboxes: dict[str, OutboxReport] = {}
        """What relays have reported since the engine's start."""

    async def overview(self, since: dt.datetime | None, until: dt.datetime | None) -> Overview:
        now = self._clock.now()
        axis = plan_axis(to_optional_milliseconds(since), to_optional_milliseconds(until), now, _MOST_INTERVALS)
        registry, first_call_at = self._transactions.registry, self._call_dispatcher.first_call_at

        def read(connection: sqlite3.Connection) -> tuple[dict[str, QueuedLoad], int, list[Concern]]:
            concerns = [
                *loads.stuck_keys(connection, now),
                *loads.unmatched_events(connection, set(awaited_names(connection)), registry, now),
                *loads.paused_functions(connection),
            ]
            return loads.queued_loads(connection), loads.count_scheduled(connection, first_call_at), concerns

        queued, scheduled, concerns = await self._reader.read(read)
        counts = await self._statistics.counts(self._reader, axis.since, axis.until, axis.step)
        replayed = await self._replayed(counts, axis.since)
        functions = await self._loads(
            queued,
            plan_axis(to_optional_milliseconds(since), to_optional_milliseconds(until), now, _MOST_OF_FUNCTION),
        )
        live = sum(function.live for function in functions)
        return Overview(
            since=to_datetime(axis.since * MINUTE),
            until=to_datetime(axis.until * MINUTE),
            interval_seconds=axis.step * 60,
            counts=run_counts(counts.values(), axis, replayed.values()),
            live={RunStatus.SCHEDULED: min(scheduled, live), RunStatus.RUNNING: max(live - scheduled, 0)},
            functions=functions,
            concerns=await self._concerns(concerns, now),
            retrying=len(self._statistics.retrying),
        )

    async def function_loads(self, since: dt.datetime | None, until: dt.datetime | None) -> list[FunctionLoad]:
        """Loads of the functions that apps serve, and of others that have runs, by id."""
        axis = plan_axis(
            to_optional_milliseconds(since), to_optional_milliseconds(until), self._clock.now(), _MOST_OF_FUNCTION
        )
        return await self._loads(await self._reader.read(loads.queued_loads), axis)

    async def function_report(self, function: FunctionInfo, since: dt.datetime | None) -> FunctionReport:
        axis = plan_axis(to_optional_milliseconds(since), None, self._clock.now(), _MOST_INTERVALS)
        queued = await self._reader.read(loads.queued_loads)
        (load,) = await self._loads(queued, axis, function.id)
        sample = await self._reader.read(lambda connection: sample_durations(connection, function.id))
        usage = await self._reader.read(lambda connection: sum_usage_since(connection, function.id, axis.since))
        return FunctionReport(
            function=function,
            load=load,
            steps=sample.steps,
            sampled=len(sample.runs),
            p50=percentile(sample.runs, 0.5) if sample.runs else None,
            p95=percentile(sample.runs, 0.95) if sample.runs else None,
            usage=usage,
        )

    async def list_apps(self) -> list[App]:
        apps = await self._reader.read(list_apps)
        unreached = self._statistics.unreached_apps
        return [
            msgspec.structs.replace(
                app, unreached_since=to_datetime(unreached[app.id].since), unreached_error=unreached[app.id].error
            )
            if app.id in unreached
            else app
            for app in apps
        ]

    async def schedules(self) -> list[ScheduleInfo]:
        """The schedules of active functions."""
        first_call_at, registry = self._call_dispatcher.first_call_at, self._transactions.registry
        planned = await self._reader.read(lambda connection: planned_schedules(connection, first_call_at))
        found = []
        for each in planned:
            function, controls = registry.find_active(each.function_id), registry.controls.get(each.function_id)
            for schedule in () if function is None else function.flow.schedules:
                if schedule.text == each.schedule:
                    ticks = [each.at, *itertools.islice(schedule.ticks_after(each.at), _MOST_TICKS - 1)]
                    view = ScheduleInfo(
                        function_id=each.function_id,
                        schedule=each.schedule,
                        next_ticks=[to_datetime(tick) for tick in ticks],
                        last_runs=each.last_runs,
                        is_paused=controls is not None and controls.is_paused,
                    )
                    found.append(view)
        return found

    async def _loads(
        self, queued: Mapping[str, QueuedLoad], axis: Axis, function_id: str | None = None
    ) -> list[FunctionLoad]:
        counts = await self._statistics.counts(self._reader, axis.since, axis.until, axis.step, function_id)
        replayed = await self._replayed(counts, axis.since)
        live, calls, now = await self._statistics.live(), self._call_dispatcher.loads(), self._clock.now()
        active = {each.id for each in self._transactions.registry.functions.values() if each.is_active}
        found = {function_id} if function_id is not None else {*active, *live, *calls, *queued, *counts}
        return [
            _load(
                each,
                calls.get(each),
                queued.get(each),
                live[each],
                run_counts([counts.get(each, {})], axis, [replayed.get(each, {})]),
                now,
            )
            for each in sorted(found)
        ]

    async def _replayed(
        self, counts: Mapping[str, Mapping[int, Sequence[int]]], since: int
    ) -> dict[str, dict[int, int]]:
        """The failed runs since a minute with a completed rerun, by function and minute."""
        if not any(numbers[FAILED] for minutes in counts.values() for numbers in minutes.values()):
            return {}
        return await self._reader.read(lambda connection: loads.replayed_failures(connection, since * MINUTE))

    async def _concerns(self, others: Sequence[Concern], now: int) -> list[Concern]:
        last = now // MINUTE + 1
        counts = await self._statistics.counts(self._reader, last - HOUR, last, 1)
        failing = loads.failing_functions(counts, await self._replayed(counts, last - HOUR), now)
        unreached = loads.unreached_apps(self._statistics.unreached_apps)
        return [*unreached, *loads.outbox_concerns(self.outboxes, now), *failing, *others][:_MOST_CONCERNS]


def _load(
    function_id: str,
    calls: CallLoad | None,
    queued: QueuedLoad | None,
    live: int,
    counts: list[RunCounts],
    now: int,
) -> FunctionLoad:
    oldest = [each.oldest for each in (calls, queued) if each is not None and each.oldest is not None]
    return FunctionLoad(
        function_id=function_id,
        backlog=(calls.waiting if calls else 0) + (queued.calls if queued else 0),
        queue_delay=max(now - min(oldest), 0) / 1000 if oldest else None,
        in_flight=calls.in_flight if calls else 0,
        live=live,
        counts=counts,
    )


def run_counts(
    counts: Iterable[Mapping[int, Sequence[int]]], axis: Axis, replayed: Iterable[Mapping[int, int]] = ()
) -> list[RunCounts]:
    """The sums of counts by interval. Intervals without runs have zeros.

    ``replayed`` are numbers of failed runs with a completed rerun, by the minute of the failure.
    """
    sums = {minute: [0] * len(COLUMNS) for minute in axis.minutes}
    for by_minute in counts:
        for minute, numbers in by_minute.items():
            into = sums[minute]
            for place, number in enumerate(numbers):
                into[place] += number
    repaired = Counter[int]()
    for of_function in replayed:
        for minute, count in of_function.items():
            repaired[axis.interval_of(minute)] += count
    return [
        RunCounts(
            at=to_datetime(minute * MINUTE), replayed=repaired[minute], **dict(zip(COLUMNS, numbers, strict=True))
        )
        for minute, numbers in sums.items()
    ]
