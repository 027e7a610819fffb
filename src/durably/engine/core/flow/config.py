"""The flow control of one function, compiled from its options, and the times at which its cron schedules tick.

``durably.protocol.options`` declares the options.
"""

import datetime as dt
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from durably.engine.core.expressions import Expression, ExpressionInvalidError, compile_expression
from durably.protocol.durations import Duration
from durably.protocol.engine_errors import ConfigInvalidError
from durably.protocol.limits import MAX_EVENT_NAME_LENGTH, MAX_TRIGGERS
from durably.protocol.options import (
    OPTIONS,
    Concurrency,
    FunctionOptions,
    OptionInvalidError,
    RateLimit,
    TriggerCron,
    expressions_of,
    milliseconds,
    parse_date,
)
from durably.protocol.options import Expression as DeclaredExpression
from durably.protocol.sync import FunctionConfig, Trigger

from .buckets import Bucket, BucketKind, Fields, Pace, bucket_id, key_text, pace_of

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


_BURST_SHARE = 10
"""The share of a rate limit that may be used at once, in addition to the first event."""
_LONGEST_QUOTE = 80
_KEY_PLACES = {kind: f"{kind}.key" for kind in BucketKind} | {
    BucketKind.BATCH: "batch_events.key",
    BucketKind.IDEMPOTENCY: "idempotency",
}
_OFF_IF_FALSE = frozenset({BucketKind.RATE_LIMIT, BucketKind.IDEMPOTENCY, BucketKind.SINGLETON})
"""The options that do not apply to an event for which their key is ``false``."""


class ConcurrencyLimit(msgspec.Struct, frozen=True):
    """A concurrency limit of a function.

    ``name`` differs between the limits of a function, and stays the same if only the number changes.
    """

    name: str
    limit: int
    scope: str
    key: Expression | None = None

    def bucket_id(self, function_id: str, event: Fields, now: int) -> str:
        key = "" if self.key is None else key_text(self.key.value(event, now=now))
        if self.scope == "fn":
            return bucket_id("concurrency", self.scope, function_id, self.name, key)
        return bucket_id("concurrency", self.scope, key)


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a function, and values computed from them once.

    - ``expressions``: By option, such as ``debounce.key``.
    - ``rate_limit``, ``throttle``: Set if the function has those options.
    - ``cancel_conditions``: One for each entry of the option ``cancel``.
    """

    function_id: str
    options: FunctionOptions = msgspec.field(default_factory=FunctionOptions)
    expressions: Mapping[str, Expression] = {}
    concurrency: tuple[ConcurrencyLimit, ...] = ()
    cancel_conditions: tuple[Expression | None, ...] = ()
    rate_limit: Pace | None = None
    throttle: Pace | None = None
    schedules: tuple[Schedule, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether every event starts a run at once, and every call is made at once."""
        return not any(getattr(self.options, option.name) for option in OPTIONS)

    def bucket(self, kind: BucketKind, event: Fields, now: int) -> Bucket | None:
        """The bucket of an option to which an event belongs.

        ``None`` if the option does not apply to the event.
        """
        expression = self.expressions.get(_KEY_PLACES[kind])
        if expression is None:
            return Bucket(kind, self.function_id)
        value = expression.value(event, now=now)
        if value is False and kind in _OFF_IF_FALSE:
            return None
        return Bucket(kind, self.function_id, key_text(value))

    def limit(self, name: str) -> int | None:
        """The concurrency limit of this name; ``None`` if the function no longer has it."""
        return next((limit.limit for limit in self.concurrency if limit.name == name), None)

    def start_by(self, admitted_at: int) -> int | None:
        timeouts = self.options.timeouts
        return None if timeouts is None else deadline(timeouts.start, admitted_at)

    def finish_by(self, started_at: int) -> int | None:
        timeouts = self.options.timeouts
        return None if timeouts is None else deadline(timeouts.finish, started_at)


def deadline(timeout: Duration | None, now: int) -> int | None:
    """The time at which a timeout ends.

    It is ``now`` plus a duration, or a date that is the same for all runs.
    """
    if timeout is None:
        return None
    date, duration = _read_timeout(timeout)
    return now + duration if date is None else date


@functools.lru_cache(maxsize=1024)
def _read_timeout(timeout: Duration) -> tuple[int | None, int]:
    """The date of a timeout, or else its duration, in milliseconds."""
    if isinstance(timeout, str) and (date := parse_date(timeout)):
        return round(date.timestamp() * 1000), 0
    return None, milliseconds(timeout)


def read_flow(config: FunctionConfig) -> Flow:
    """Compile a function's options.

    Raises ``ConfigInvalidError``, which names the function and the option.
    """
    if (problem := config.find_problem()) is not None:
        raise ConfigInvalidError(f"function {config.id!r}: {problem}")
    if config.batch_events is not None and config.batch_events.timeout is None:
        raise ConfigInvalidError.at(
            config.id, "batch_events.timeout", "is missing: a batch that does not fill up would never start a run"
        )
    expressions = {
        place: read_expression(config.id, place, text, declared) for place, text, declared in expressions_of(config)
    }
    rate_limit, throttle = config.rate_limit, config.throttle
    return Flow(
        function_id=config.id,
        options=config,
        expressions=expressions,
        concurrency=tuple(
            _limit(entry, expressions.get(f"concurrency[{index}].key"))
            for index, entry in enumerate(config.concurrency or [])
        ),
        cancel_conditions=tuple(
            expressions.get(f"cancel[{index}].if_exp") for index in range(len(config.cancel or ()))
        ),
        rate_limit=None if rate_limit is None else _rate_pace(rate_limit),
        throttle=None if throttle is None else pace_of(throttle.limit, throttle.period, throttle.burst or 1),
        schedules=read_schedules(config.id, config.triggers),
    )


def _rate_pace(option: RateLimit) -> Pace:
    return pace_of(option.limit, option.period, 1 + option.limit // _BURST_SHARE)


def _limit(option: Concurrency, key: Expression | None) -> ConcurrencyLimit:
    scope = option.scope or "fn"
    return ConcurrencyLimit(f"{scope}:{option.key or ''}", option.limit, scope, key)


def read_expression(function_id: str, place: str, text: str, declared: DeclaredExpression) -> Expression:
    """Compile an expression.

    Raises ``ConfigInvalidError`` if it is invalid, or a constant of another type than the option needs.
    """
    try:
        expression = compile_expression(text, has_async=declared.has_async)
    except ExpressionInvalidError as error:
        raise ConfigInvalidError.at(function_id, place, f"is not valid: {error}") from error
    shown = text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"
    if expression.missing_field:
        raise ConfigInvalidError.at(function_id, place, f"is `{shown}`, which {expression.missing_field}")
    if declared.gives is not None and expression.is_constant:
        value = expression.value({}, now=0)
        is_bool, is_number = isinstance(value, bool), isinstance(value, int | float)
        if not (is_bool if declared.gives == "bool" else is_number and not is_bool):
            wanted = "true or false" if declared.gives == "bool" else "a number"
            raise ConfigInvalidError.at(function_id, place, f"is `{shown}`, which can never give {wanted}, as it must")
    return expression


def check_triggers(function_id: str, triggers: Sequence[Trigger]) -> None:
    """Check the triggers of a function.

    Raises ``ConfigInvalidError``. Only invocations start a function without triggers, as on the public server.
    """
    for option, problem in _problems_of_triggers(triggers):
        raise ConfigInvalidError.at(function_id, option, problem)
    for trigger in triggers:
        if trigger.event and trigger.expression and trigger.expression.strip():
            read_expression(function_id, "triggers.if_exp", trigger.expression, DeclaredExpression(gives="bool"))


def _problems_of_triggers(triggers: Sequence[Trigger]) -> Iterator[tuple[str, str]]:
    if len(triggers) > MAX_TRIGGERS:
        yield "triggers", f"are {len(triggers)}; at most {MAX_TRIGGERS} are allowed"
    if any(trigger in triggers[:index] for index, trigger in enumerate(triggers)):
        yield "triggers", "has the same trigger twice"
    for trigger in triggers:
        if bool(trigger.event) == bool(trigger.cron) or not (trigger.event or trigger.cron or "").strip():
            yield "triggers", "must each have either an event or a cron schedule"
        if trigger.cron and trigger.expression:
            yield "triggers.if_exp", "is about events, and cannot be combined with a cron schedule"
        if trigger.event and len(trigger.event) > MAX_EVENT_NAME_LENGTH:
            yield "triggers", f"name an event of more than {MAX_EVENT_NAME_LENGTH} characters"
        if trigger.event and trigger.jitter:
            yield "triggers.jitter", "is about cron schedules, and cannot be combined with an event"
