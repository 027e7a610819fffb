"""Cron schedules: their fields, and the times at which they tick."""

import datetime as dt
import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from durably.protocol.engine_errors import ConfigInvalidError
from durably.protocol.options import OptionInvalidError, TriggerCron, milliseconds
from durably.protocol.sync import Trigger

MAX_LENGTH = 255
"""Maximum characters of a schedule."""
_ZONE = re.compile(r"(?:CRON_)?TZ=(\S+)\s+(.+)", re.ASCII)
_VALUE = r"(?:\d{1,2}|[A-Za-z]{3})"
_ITEM = rf"(?:[*?]|{_VALUE}(?:-{_VALUE})?)(?:/\d{{1,2}})?"
_FIELD = re.compile(rf"{_ITEM}(?:,{_ITEM})*", re.ASCII)
_STEPPED_DAYS = {2: "1-31", 4: "0-6"}
_LATE = 60_000
"""A tick counts as missed instead of late if it is overdue by more than its jitter and this many milliseconds."""
_FIRST_LOOK_BACK = 24 * 60 * 60 * 1000
_LOOK_BACK_GROWTH = 8


class Schedule(msgspec.Struct, frozen=True):
    """A cron schedule.

    ``text`` is the app's, ``fields`` its normal form, ``jitter`` in milliseconds.
    """

    text: str
    fields: str
    zone: str
    jitter: int = 0

    def ticks_after(self, after: int) -> Iterator[int]:
        """The ticks later than a time, in order."""
        zone = ZoneInfo(self.zone)
        last = after
        for tick in CronSim(self.fields, dt.datetime.fromtimestamp(after / 1000, zone)):
            at = round(tick.timestamp() * 1000)
            # Around clock changes, some are a time of day that has already passed.
            if at > last:
                last = at
                yield at


class Tick(NamedTuple):
    """A tick of a schedule.

    ``at`` is the scheduled time. ``due`` is the time to fire it, later by up to the jitter.
    """

    at: int
    due: int


class Fired(NamedTuple):
    """A fired tick and the next one.

    ``tick`` starts a run now, ``upcoming`` is the next to plan. Each is ``None`` if there is none.
    """

    tick: Tick
    upcoming: Tick | None


def plan_tick(schedule: Schedule, function_id: str, after: int) -> Tick | None:
    """The first tick later than ``after``.

    ``after`` is the time of the sync for a schedule that is new or has changed.
    """
    at = next(schedule.ticks_after(after), None)
    return None if at is None else _spread(schedule, function_id, at)


def fire(schedule: Schedule, function_id: str, planned: Tick, now: int) -> Fired:
    """Fire a due tick. If ticks were missed, fire only the latest."""
    tick = planned
    horizon = now - schedule.jitter - _LATE
    if planned.at < horizon:
        tick = _spread(schedule, function_id, _latest(schedule, planned.at, horizon))
    return Fired(tick, plan_tick(schedule, function_id, tick.at))


def _latest(schedule: Schedule, planned: int, until: int) -> int:
    """The last tick from ``planned`` to ``until``.

    The search begins at increasingly early times.
    """
    look_back = _FIRST_LOOK_BACK
    while (start := until - look_back) > planned:
        found = None
        for at in schedule.ticks_after(start):
            if at > until:
                break
            found = at
        if found is not None:
            return found
        look_back *= _LOOK_BACK_GROWTH
    latest = planned
    for at in schedule.ticks_after(planned):
        if at > until:
            break
        latest = at
    return latest


def _spread(schedule: Schedule, function_id: str, at: int) -> Tick:
    """A tick with its jitter, which is deterministic."""
    if not schedule.jitter:
        return Tick(at, at)
    seed = f"{function_id}|{schedule.text}|{at}".encode()
    share = int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "big")
    return Tick(at, at + share % (schedule.jitter + 1))


def read_schedules(function_id: str, triggers: Sequence[Trigger]) -> tuple[Schedule, ...]:
    """Read the schedules of a function. Raises ``ConfigInvalidError``."""
    texts = [trigger.cron.strip() for trigger in triggers if trigger.cron]
    if len(set(texts)) < len(texts):
        raise ConfigInvalidError.at(function_id, "triggers.cron", "has the same schedule twice")
    return tuple(_read_schedule(function_id, trigger) for trigger in triggers if trigger.cron)


def _read_schedule(function_id: str, trigger: Trigger) -> Schedule:
    try:
        option = TriggerCron(cron=trigger.cron or "", jitter=trigger.jitter)
    except OptionInvalidError as error:
        raise ConfigInvalidError.at(function_id, f"triggers.{error.field}", error.problem) from None
    text = option.cron.strip()
    try:
        zone, fields = _read_fields(text)
        schedule = Schedule(text, fields, zone, 0 if option.jitter is None else milliseconds(option.jitter))
        next(schedule.ticks_after(0))
    except CronSimError as error:
        problem = f"is not valid: {error}"
    except StopIteration:
        problem = "never ticks"
    except ValueError as error:
        problem = str(error)
    else:
        return schedule
    raise ConfigInvalidError.at(function_id, "triggers.cron", f"{text[:MAX_LENGTH]!r} {problem}")


_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
"""The schedules that cron(5) has names for."""


def _read_fields(text: str) -> tuple[str, str]:
    """The time zone and the five fields of a schedule.

    Raises ``ValueError`` with the reason.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"… is longer than {MAX_LENGTH} characters")
    with_zone = _ZONE.fullmatch(text)
    zone, fields = with_zone.groups() if with_zone else ("UTC", text)
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"names the time zone {zone!r}, which is not known; write it like TZ=Europe/Paris") from None
    parts = fields.split()
    if fields.lower() in _NICKNAMES:
        raise ValueError(f"is a name that this engine does not have: write {_NICKNAMES[fields.lower()]!r}")
    if len(parts) != 5:
        count = "1 field" if len(parts) == 1 else f"{len(parts)} fields"
        raise ValueError(f"has {count}; it must have five: minute, hour, day of month, month, day of week")
    if not all(_FIELD.fullmatch(part) for part in parts):
        raise ValueError("is not valid; fields are made of numbers, names like MON or JAN, and * , - /")
    return zone, " ".join(_normalise(index, part) for index, part in enumerate(parts))


def _normalise(index: int, field: str) -> str:
    """A field of a schedule, rewritten for the library.

    ``?`` means ``*``. Days with a step are restricted days, as ``1-31/2`` is to the library, but ``*/2`` is not.
    """
    items = (item.replace("?", "*") for item in field.split(","))
    days = _STEPPED_DAYS.get(index)
    if days is None:
        return ",".join(items)
    return ",".join(f"{days}{item[1:]}" if item.startswith("*/") and item != "*/1" else item for item in items)
