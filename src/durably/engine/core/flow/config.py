"""The flow control of one function, compiled from its options.

``durably.protocol.options`` declares the options.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from durably.engine.core.expressions import Expression, ExpressionInvalidError, Kind, compile_expression
from durably.protocol.durations import Duration
from durably.protocol.engine_errors import ConfigInvalidError
from durably.protocol.limits import MAX_EVENT_NAME_LENGTH, MAX_TRIGGERS
from durably.protocol.options import (
    OPTIONS,
    Concurrency,
    FunctionOptions,
    RateLimit,
    expressions_of,
    milliseconds,
    parse_date,
)
from durably.protocol.options import Expression as DeclaredExpression
from durably.protocol.sync import FunctionConfig, Trigger

from .buckets import Bucket, BucketKind, Fields, bucket_id, key_text
from .cron import Schedule, read_schedules
from .rates import Pace, pace_of

_BURST_SHARE = 10
"""The share of a rate limit that may be used at once, in addition to the first event."""
_LONGEST_QUOTE = 80
_KEY_PLACES = {kind: f"{kind}.key" for kind in BucketKind} | {
    BucketKind.BATCH: "batch_events.key",
    BucketKind.IDEMPOTENCY: "idempotency",
}
_OFF_IF_FALSE = frozenset({BucketKind.RATE_LIMIT, BucketKind.IDEMPOTENCY, BucketKind.SINGLETON})
"""The options that do not apply to an event for which their key is ``false``."""
_KINDS = {"bool": Kind.BOOL, "number": Kind.NUMBER}


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

    Raises ``ConfigInvalidError`` if it is invalid, or can never give a value of the needed kind.
    """
    try:
        expression = compile_expression(text, has_async=declared.has_async)
    except ExpressionInvalidError as error:
        raise ConfigInvalidError.at(function_id, place, f"is not valid: {error}") from error
    shown = text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"
    if expression.missing_field:
        raise ConfigInvalidError.at(function_id, place, f"is `{shown}`, which {expression.missing_field}")
    if declared.gives is not None and (kind := _KINDS[declared.gives]) not in expression.kinds:
        raise ConfigInvalidError.at(function_id, place, f"is `{shown}`, which can never give {kind.value}, as it must")
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
