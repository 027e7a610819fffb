"""Triggers: checks of events, expressions and schedules, and the times of cron schedules."""

import datetime as dt
import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from durably.engine.core.expressions import Kind
from durably.protocol import sync
from durably.protocol.limits import MAX_EVENT_NAME_LENGTH, MAX_TRIGGERS
from durably.protocol.sync import Trigger

from .option_values import OptionReader

_LONGEST = 255
_LONGEST_JITTER = dt.timedelta(minutes=5)
_ZONE = re.compile(r"(?:CRON_)?TZ=(\S+)\s+(.+)", re.ASCII)
_VALUE = r"(?:\d{1,2}|[A-Za-z]{3})"
_ITEM = rf"(?:[*?]|{_VALUE}(?:-{_VALUE})?)(?:/\d{{1,2}})?"
_FIELD = re.compile(rf"{_ITEM}(?:,{_ITEM})*", re.ASCII)
_STEPPED_DAYS = {2: "1-31", 4: "0-6"}
_LATE = 60_000
"""A tick is missed, rather than somewhat late, if it is over its jitter and this many milliseconds overdue."""
_FIRST_LOOK_BACK = 24 * 60 * 60 * 1000
_LOOK_BACK_GROWTH = 8


class Schedule(msgspec.Struct, frozen=True):
    """``text`` is what the app wrote, ``fields`` what it amounts to, ``jitter`` milliseconds."""

    text: str
    fields: str
    zone: str
    jitter: int = 0

    def ticks_after(self, moment: int) -> Iterator[int]:
        """The ticks later than ``moment``, in order."""
        zone = ZoneInfo(self.zone)
        last = moment
        for tick in CronSim(self.fields, dt.datetime.fromtimestamp(moment / 1000, zone)):
            at = round(tick.timestamp() * 1000)
            # Around clock changes some come out as a time of day that has passed already.
            if at > last:
                last = at
                yield at


class Tick(NamedTuple):
    """``at`` is the scheduled time; ``due`` is when to fire it, which is up to the jitter later."""

    at: int
    due: int


class Fired(NamedTuple):
    """``tick`` is to start a run now, ``upcoming`` to be planned in its place; ``None`` where there is none."""

    tick: Tick
    upcoming: Tick | None


def plan_tick(schedule: Schedule, function_id: str, after: int) -> Tick | None:
    """The first tick later than ``after``: the time of the sync for a schedule that is new or has changed."""
    at = next(schedule.ticks_after(after), None)
    return None if at is None else _spread(schedule, function_id, at)


def fire(schedule: Schedule, function_id: str, planned: Tick, now: int) -> Fired:
    """What follows from a planned tick that is due: it is fired, or a later one in its place if it was missed."""
    tick = planned
    horizon = now - schedule.jitter - _LATE
    if planned.at < horizon:
        tick = _spread(schedule, function_id, _latest(schedule, planned.at, horizon))
    return Fired(tick, plan_tick(schedule, function_id, tick.at))


def _latest(schedule: Schedule, planned: int, until: int) -> int:
    """The last tick from ``planned`` to ``until``, looked for from ever further back."""
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
    """A tick with its jitter, which is the same however often it is asked for."""
    if not schedule.jitter:
        return Tick(at, at)
    seed = f"{function_id}|{schedule.text}|{at}".encode()
    share = int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "big")
    return Tick(at, at + share % (schedule.jitter + 1))


def read_schedules(triggers: Sequence[sync.Trigger], reader: OptionReader) -> tuple[Schedule, ...]:
    schedules = tuple(_read_schedule(trigger.cron, trigger.jitter, reader) for trigger in triggers if trigger.cron)
    if len({schedule.text for schedule in schedules}) < len(schedules):
        raise reader.refuse("triggers.cron", "has the same schedule twice")
    return schedules


def _read_schedule(text: str, jitter: str | None, reader: OptionReader) -> Schedule:
    def refuse(reason: str) -> Exception:
        return reader.refuse("triggers.cron", f"{text[:_LONGEST]!r} {reason}")

    text = text.strip()
    if len(text) > _LONGEST:
        raise refuse(f"… is longer than {_LONGEST} characters")
    with_zone = _ZONE.fullmatch(text)
    zone, fields = with_zone.groups() if with_zone else ("UTC", text)
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        raise refuse(f"names the time zone {zone!r}, which is not known; write it like TZ=Europe/Paris") from None
    parts = fields.split()
    if len(parts) != 5:
        raise refuse(f"has {len(parts)} fields; it must have five: minute, hour, day of month, month, day of week")
    if not all(_FIELD.fullmatch(part) for part in parts):
        raise refuse("is not valid; fields are made of numbers, names like MON or JAN, and * , - /")
    fields = " ".join(_normalise(index, part) for index, part in enumerate(parts))
    schedule = Schedule(text, fields, zone, _read_jitter(jitter, reader))
    try:
        next(schedule.ticks_after(0))
    except CronSimError as error:
        raise refuse(f"is not valid: {error}") from None
    except StopIteration:
        raise refuse("never ticks") from None
    return schedule


def _normalise(index: int, field: str) -> str:
    """``?`` means ``*``. Days with a step are restricted days, as ``1-31/2`` is to the library, but ``*/2`` is not."""
    items = (item.replace("?", "*") for item in field.split(","))
    days = _STEPPED_DAYS.get(index)
    if days is None:
        return ",".join(items)
    return ",".join(f"{days}{item[1:]}" if item.startswith("*/") and item != "*/1" else item for item in items)


def _read_jitter(text: str | None, reader: OptionReader) -> int:
    if not text or not text.strip():
        return 0
    return reader.duration("triggers.jitter", text, at_most=_LONGEST_JITTER)


def check_triggers(function_id: str, triggers: Sequence[Trigger]) -> None:
    """Raises ``ConfigInvalidError``. A function without triggers is started only by invocations, as on the public
    server."""
    reader = OptionReader(function_id)
    if len(triggers) > MAX_TRIGGERS:
        raise reader.refuse("triggers", f"are {len(triggers)}; at most {MAX_TRIGGERS} are possible")
    if any(trigger in triggers[:index] for index, trigger in enumerate(triggers)):
        raise reader.refuse("triggers", "has the same trigger twice")
    for trigger in triggers:
        if bool(trigger.event) == bool(trigger.cron) or not (trigger.event or trigger.cron or "").strip():
            raise reader.refuse("triggers", "must each have either an event or a cron schedule")
        if trigger.cron and trigger.expression:
            raise reader.refuse("triggers.if_exp", "is about events, and has no place beside a cron schedule")
        if trigger.event:
            _check_event(trigger.event, trigger, reader)


def _check_event(name: str, trigger: Trigger, reader: OptionReader) -> None:
    if len(name) > MAX_EVENT_NAME_LENGTH:
        raise reader.refuse("triggers", f"name an event of more than {MAX_EVENT_NAME_LENGTH} characters")
    if trigger.jitter:
        raise reader.refuse("triggers.jitter", "is about cron schedules, and has no place beside an event")
    reader.expression("triggers.if_exp", trigger.expression, gives=Kind.BOOL)
