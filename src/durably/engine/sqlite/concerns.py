"""Concerns: sentences on conditions that need attention, with remedies. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from durably.engine.model.overview import Concern, ConcernKind, UnreachedApp
from durably.engine.model.runs import to_optional_datetime
from durably.engine.sqlite.queries.loads import MOST_COUNTED, SkippedRuns, StuckSlot, UnmatchedName
from durably.engine.sqlite.statistics import COMPLETED, FAILED, MINUTE

LEAST_FAILED_SHARE = 0.05
"""The share of failed runs of the last hour above which a function needs attention."""
_LONGEST_ERROR = 200
_LEAST_AGE = 2 * MINUTE


def failing_functions(
    counts: Mapping[str, Mapping[int, Sequence[int]]],
    replayed: Mapping[str, Mapping[int, int]] | None = None,
    now: int | None = None,
) -> list[Concern]:
    """Functions with failed runs, by counts of the last hour by function and minute.

    ``replayed`` are the numbers of failed runs with a completed rerun. They do not count. ``now`` is milliseconds since
    the epoch. Counts have minutes, so that a failure of the last two has no time.
    """
    found = []
    for function_id, minutes in counts.items():
        of_function = (replayed or {}).get(function_id, {})
        failures = {
            minute: left
            for minute, numbers in minutes.items()
            if (left := numbers[FAILED] - of_function.get(minute, 0)) > 0
        }
        failed = sum(failures.values())
        ended = failed + sum(numbers[COMPLETED] for numbers in minutes.values())
        if failed and failed >= LEAST_FAILED_SHARE * ended:
            since = min(failures)
            message = (
                f"{failed:,} of {_runs(ended)} of {function_id!r} failed in the last hour: see the error of the last "
                "one, fix the function, and replay the failed runs"
            )
            is_recent = now is not None and now - since * MINUTE < _LEAST_AGE
            since_time = None if is_recent else since * MINUTE
            found.append(_concern(ConcernKind.FAILING_FUNCTION, function_id, message, failed, since_time))
    return _most_first(found)


def unreached_apps(apps: Mapping[str, UnreachedApp]) -> list[Concern]:
    found = []
    for app_id, app in apps.items():
        calls = "1 call" if app.count == 1 else f"{app.count:,} calls"
        message = (
            f"the app {app_id!r} does not answer, and {calls} did not reach it ({app.error[:_LONGEST_ERROR]}): start "
            "it, or correct its URL; the calls are repeated until then"
        )
        found.append(_concern(ConcernKind.UNREACHED_APP, app_id, message, app.count, app.since))
    return _most_first(found)


def absent_apps(waiting: Mapping[str, int]) -> list[Concern]:
    """Apps without a running process. ``waiting`` are the numbers of their live runs."""
    found = []
    for app_id, count in waiting.items():
        if count:
            wait = "waits" if count == 1 else "wait"
            message = (
                f"no process of the app {app_id!r} runs its functions, and {_runs(count)} of it {wait}: start the app, "
                "or `durably worker` with its client; the runs continue then"
            )
            found.append(_concern(ConcernKind.UNREACHED_APP, app_id, message, count, None))
    return _most_first(found)


def stuck_keys(slots: Iterable[StuckSlot], now: int) -> list[Concern]:
    found = []
    for slot in slots:
        calls = "1 call waits" if slot.waiting == 1 else f"{slot.waiting:,} calls wait"
        message = (
            f"{calls} for the concurrency key {slot.bucket_id!r}, which the run {slot.run_id} of {slot.function_id!r} "
            f"has held for {(now - slot.since) // MINUTE} minutes: cancel that run if it hangs, or raise the limit"
        )
        found.append(_concern(ConcernKind.STUCK_KEY, slot.function_id, message, slot.waiting, slot.since))
    return _most_first(found)


def unmatched_events(names: Iterable[UnmatchedName], reasons: Mapping[str, str]) -> list[Concern]:
    """``reasons`` are the ends of sentences on why events of a name match nothing."""
    found = []
    for name in names:
        message = (
            f"{_at_most(name.count)} of the last hour with the name {name.name!r} matched nothing: "
            f"{reasons[name.name]}; correct the name, or serve a function that it triggers"
        )
        found.append(_concern(ConcernKind.UNMATCHED_EVENTS, name.name, message, name.count, name.first))
    return _most_first(found)


def paused_functions(paused: Iterable[SkippedRuns]) -> list[Concern]:
    found = []
    for each in paused:
        if each.count:
            message = (
                f"{each.function_id!r} is paused, and has skipped {_runs(each.count)}: resume it, and replay the "
                "skipped runs if they are still wanted"
            )
            found.append(_concern(ConcernKind.PAUSED_FUNCTION, each.function_id, message, each.count, each.paused_at))
    return _most_first(found)


def _concern(kind: ConcernKind, subject: str, message: str, count: int, since: int | None) -> Concern:
    return Concern(kind=kind, subject=subject, message=message, count=count, since=to_optional_datetime(since))


def _most_first(found: list[Concern]) -> list[Concern]:
    return sorted(found, key=lambda concern: (-concern.count, concern.subject))


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count:,} runs"


def _at_most(count: int) -> str:
    if count == 1:
        return "1 event"
    return f"{count:,} events" if count < MOST_COUNTED else f"{MOST_COUNTED:,} events or more"
