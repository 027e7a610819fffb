"""The options of functions, each declared once.

The declarations serve users, the sync payload (spec §4.3.2) and engines. Users construct these classes, and msgspec
reads them from the payload. A field's annotation holds its check, which runs in both cases; its wire name follows from
``rename``. ``FunctionOptions`` lists the options of a function. ``expressions_of`` yields the expressions that an
engine compiles.

Users write durations as strings, milliseconds or ``timedelta``. A class holds them as strings, as the payload does.
"""

import datetime as dt
import functools
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from .durations import Duration, DurationInvalidError, format_duration, parse_rfc3339, to_timedelta
from .errors import FunctionConfigInvalidError
from .events import InternalEvent
from .limits import (
    MAX_BATCH_SIZE,
    MAX_CANCELS,
    MAX_CONCURRENCY,
    MAX_COUNT,
    MAX_EVENT_NAME_LENGTH,
    MAX_JITTER,
    MAX_PERIOD,
    MAX_RATE_PERIOD,
    MAX_WAIT,
    MIN_PERIOD,
)
from .text import is_encodable

_MILLISECOND = dt.timedelta(milliseconds=1)
_LONGEST_QUOTE = 80


class OptionInvalidError(FunctionConfigInvalidError):
    """A field of an option has an invalid value.

    ``problem`` continues a sentence that starts with the field.
    """

    def __init__(self, option: str, field: str, problem: str) -> None:
        super().__init__(f"{option}.{field} {problem}")
        self.field = field
        self.problem = problem


# Checks of fields. Each returns the value to store, ``None`` if the field is not used, or raises ``ValueError``.


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """A string. A blank one means that the field is not used."""

    longest: int | None = None

    def check(self, value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError(f"is {value!r}; it must be a string")
        if self.longest is not None and len(value) > self.longest:
            raise ValueError(f"has {len(value)} characters; it must have at most {self.longest}")
        return value if value.strip() else None


class Expression(Text, frozen=True):
    """An expression over ``event``, and over ``async`` if ``has_async``.

    If ``gives`` is set, the expression's value must be of that type.
    """

    gives: Literal["bool", "number"] | None = None
    has_async: bool = False


class Choice(Text, frozen=True):
    names: tuple[str, ...]

    def check(self, value: Any) -> Any:
        if value not in self.names:
            raise ValueError(f"is {_shorten(value)}; it must be one of {', '.join(map(repr, self.names))}")
        return value


class Count(msgspec.Struct, frozen=True, kw_only=True):
    least: int = 1
    most: int = MAX_COUNT

    def check(self, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not self.least <= value <= self.most:
            raise ValueError(f"is {_shorten(value)}; it must be a whole number from {self.least} to {self.most}")
        return value


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """A duration, or a date (RFC 3339) if it ``may_be_date``."""

    least: dt.timedelta = MIN_PERIOD
    most: dt.timedelta = MAX_WAIT
    may_be_date: bool = False

    def check(self, value: Any) -> str | None:
        if isinstance(value, str) and (not value.strip() or (self.may_be_date and parse_date(value))):
            return value.strip() or None
        try:
            duration = to_timedelta(value)
        except DurationInvalidError as error:
            raise ValueError(f"is not valid: {error}") from None
        if not self.least <= duration <= self.most:
            shown = (
                _shorten(value) if isinstance(value, str) else f"{value} ms" if isinstance(value, int) else str(value)
            )
            least, most = format_duration(self.least), format_duration(self.most)
            raise ValueError(f"is {shown}; it must be between {least} and {most}")
        return format_duration(duration)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


def parse_date(text: str) -> dt.datetime | None:
    """The time of a date (RFC 3339); ``None`` if the string is a duration."""
    return parse_rfc3339(text) if len(text) >= 10 else None


@functools.lru_cache(maxsize=1024)
def milliseconds(duration: Duration) -> int:
    """The milliseconds of a duration, rounded up."""
    return -(-to_timedelta(duration) // _MILLISECOND)


if TYPE_CHECKING:
    _Duration = Duration
    _Scope = Literal["account", "env", "fn"]
    _Mode = Literal["skip", "cancel"]
else:
    _Duration = _Scope = _Mode = str  # the type that msgspec reads from the payload

_Key = Annotated[str | None, Expression()]
_Condition = Annotated[str | None, Expression(gives="bool")]


class Option(msgspec.Struct, kw_only=True, frozen=True):
    """Base of the options: runs the checks of the fields, and writes the wire form."""

    def __post_init__(self) -> None:
        for name, check, is_required in _checks_of(type(self)):
            given = getattr(self, name)
            if given is None and not is_required:
                continue
            if given is None:
                raise self._invalid(name, "is required")
            try:
                value = check.check(given)
            except ValueError as error:
                raise self._invalid(name, str(error)) from None
            if value is None and is_required:
                raise self._invalid(name, "is empty")
            msgspec.structs.force_setattr(self, name, value)
        self.check_fields()

    def check_fields(self) -> None:
        """Check fields against each other. Raises ``OptionInvalidError``."""

    def _invalid(self, field: str, problem: str) -> OptionInvalidError:
        return OptionInvalidError(type(self).__name__, field, problem)

    def to_wire(self) -> dict[str, Any]:
        fields = ((field.encode_name, getattr(self, field.name)) for field in msgspec.structs.fields(self))
        return {name: value for name, value in fields if value is not None}


@functools.cache
def _checks_of(option: type[Option]) -> list[tuple[str, Any, bool]]:
    """The name and check of each field, and whether the field is required."""
    fields = msgspec.structs.fields(option)
    return [(field.name, typing.get_args(field.type)[1], field.required) for field in fields]


class Batch(Option, frozen=True, rename={"max_size": "maxSize", "if_exp": "if"}):
    """Start one run for up to ``max_size`` events, or after ``timeout``.

    There is one batch per value of ``key``.
    """

    max_size: Annotated[int, Count(least=2, most=MAX_BATCH_SIZE)]
    timeout: Annotated[_Duration | None, Period()] = None
    key: _Key = None
    if_exp: _Condition = None


class Cancel(Option, frozen=True, rename={"if_exp": "if"}):
    """Cancel runs by an event.

    ``if_exp`` compares it (``async``) with the trigger (``event``).
    """

    event: Annotated[str, Text(longest=MAX_EVENT_NAME_LENGTH)]
    if_exp: Annotated[str | None, Expression(gives="bool", has_async=True)] = None
    timeout: Annotated[_Duration | None, Period(may_be_date=True)] = None


class Concurrency(Option, frozen=True):
    """Execute at most ``limit`` steps at once, per value of ``key``.

    The limit counts within ``scope`` (default ``fn``).
    """

    limit: Annotated[int, Count()]
    key: _Key = None
    scope: Annotated[_Scope | None, Choice(names=("account", "env", "fn"))] = None

    def check_fields(self) -> None:
        if self.scope in ("account", "env") and self.key is None:
            raise self._invalid(
                "key",
                f'is missing: a limit of scope "{self.scope}" is shared by functions whose keys have the same value, '
                """so it needs one, such as '"payments"'""",
            )


class Debounce(Option, frozen=True):
    """Start a run when no event has arrived for ``period``.

    It starts at the latest ``timeout`` after the first event.
    """

    period: Annotated[_Duration, Period(most=MAX_PERIOD)]
    key: _Key = None
    timeout: Annotated[_Duration | None, Period()] = None

    def check_fields(self) -> None:
        if self.timeout is not None and to_timedelta(self.timeout) < to_timedelta(self.period):
            raise self._invalid(
                "timeout",
                f"is {self.timeout!r}, less than the period of {self.period!r}: no run would ever wait for the period",
            )


class Priority(Option, frozen=True):
    """An expression: the seconds (-600 … 600) by which a run moves ahead in the queue."""

    run: Annotated[str, Expression(gives="number")]


class RateLimit(Option, frozen=True):
    """Drop events beyond ``limit`` in ``period``, per value of ``key``."""

    limit: Annotated[int, Count()]
    period: Annotated[_Duration, Period(most=MAX_RATE_PERIOD)]
    key: _Key = None


class Singleton(Option, frozen=True):
    """Run once at a time per value of ``key``.

    A new run is skipped, or cancels the running one.
    """

    mode: Annotated[_Mode, Choice(names=("skip", "cancel"))]
    key: _Key = None


class Throttle(Option, frozen=True):
    """Start at most ``limit`` runs in ``period``, plus ``burst``.

    They count per value of ``key``. The others wait.
    """

    limit: Annotated[int, Count()]
    period: Annotated[_Duration, Period(most=MAX_PERIOD)]
    burst: Annotated[int | None, Count()] = 1
    key: _Key = None

    def check_fields(self) -> None:
        # Compute in milliseconds: the product of a count and a timedelta may overflow.
        if milliseconds(self.period) * (self.burst or 1) > milliseconds(MAX_WAIT) * self.limit:
            longest = format_duration(MAX_WAIT)
            raise self._invalid("burst", f"is {self.burst}; at this limit it would take more than {longest} to gather")


class Timeouts(Option, frozen=True):
    """Cancel a run that begins or ends too late.

    It must begin within ``start``, and end within ``finish`` after its begin.
    """

    start: Annotated[_Duration | None, Period(may_be_date=True)] = None
    finish: Annotated[_Duration | None, Period(may_be_date=True)] = None


class TriggerCron(Option, frozen=True):
    """A schedule of five fields, with an optional ``TZ=<zone>`` before them.

    ``jitter`` is a duration like ``30s``.
    """

    cron: Annotated[str, Text()]
    jitter: Annotated[str | None, Period(most=MAX_JITTER)] = None


class TriggerEvent(Option, frozen=True):
    """An event's name, with an optional condition over ``event``.

    ``expression`` is the name of ``if_exp`` in the ``inngest`` package. If one is given, both are set.
    """

    event: Annotated[str, Text()]
    if_exp: _Condition = None
    expression: _Condition = None

    def check_fields(self) -> None:
        if self.if_exp is not None and self.expression is not None and self.if_exp != self.expression:
            raise self._invalid("if_exp", "and expression are two names of one condition: give one of them")
        if "*" in self.event and not (self.event.endswith(("/*", ".*")) and self.event.count("*") == 1):
            raise self._invalid(
                "event",
                f'{self.event!r} matches no event: a "*" stands only at the end, after "/" or ".", as in "shop/*"',
            )
        condition = self.if_exp if self.if_exp is not None else self.expression
        msgspec.structs.force_setattr(self, "if_exp", condition)
        msgspec.structs.force_setattr(self, "expression", condition)

    def __repr__(self) -> str:
        return f"TriggerEvent(event={self.event!r}, if_exp={self.if_exp!r})"

    def to_wire(self) -> dict[str, Any]:
        wire = super().to_wire()
        wire.pop("if_exp", None)
        return wire


class TriggerDeferred(Option, frozen=True):
    """A run that defers the function by ``ctx.defer``, and has ended."""

    def to_event(self, function_id: str) -> TriggerEvent:
        """The trigger as engines know it. ``function_id`` is ``<app>-<fn_id>``."""
        condition = f"event.data._inngest.fn_slug == '{function_id}'"
        return TriggerEvent(event=InternalEvent.DEFERRED_SCHEDULE.value, if_exp=condition)


Trigger = TriggerCron | TriggerEvent | TriggerDeferred


class Checkpointing(Option, frozen=True, rename={"buffered_steps": "batch_steps", "interval": "batch_interval"}):
    """Execute several steps in one call, instead of one call for each step.

    A checkpoint sends ``buffered_steps`` finished steps to the engine, or fewer at ``interval`` after the first of
    them finished. Steps without a checkpoint run again if the app dies. After ``max_runtime`` a call executes no
    further step, and the function continues in another call.
    """

    buffered_steps: Annotated[int, Count()] = 1
    interval: Annotated[_Duration | None, Period(least=_MILLISECOND)] = None
    max_runtime: Annotated[_Duration | None, Period(least=_MILLISECOND)] = None

    @property
    def interval_seconds(self) -> float | None:
        return _to_seconds(self.interval)

    @property
    def max_runtime_seconds(self) -> float | None:
        return _to_seconds(self.max_runtime)


def _to_seconds(duration: Duration | None) -> float | None:
    return None if duration is None else milliseconds(duration) / 1000


def check_checkpointing(value: object, owner: str) -> None:
    """Check a value for checkpointing.

    Raises ``FunctionConfigInvalidError`` for other values than ``None`` and those that it takes.
    """
    if not (value is None or isinstance(value, bool | Checkpointing)):
        raise FunctionConfigInvalidError(f"{owner}: checkpointing takes True, False or Checkpointing, not {value!r}")


class ListOf(msgspec.Struct, frozen=True):
    """Check of a list of options."""

    most: int


class FunctionOptions(msgspec.Struct, kw_only=True, omit_defaults=True, rename="camel"):
    """The options on which an engine acts.

    ``None`` and empty lists mean that an option is not used.
    """

    batch_events: Batch | None = None
    cancel: Annotated[list[Cancel] | None, ListOf(MAX_CANCELS)] = None
    concurrency: Annotated[list[Concurrency] | None, ListOf(MAX_CONCURRENCY)] = None
    debounce: Debounce | None = None
    idempotency: _Key = None
    priority: Priority | None = None
    rate_limit: RateLimit | None = None
    singleton: Singleton | None = None
    throttle: Throttle | None = None
    timeouts: Timeouts | None = None

    def find_problem(self) -> str | None:
        """The first problem, as a sentence that starts with the option.

        ``None`` if the options are valid.
        """
        for option in OPTIONS:
            value = getattr(self, option.name)
            if value is not None and (problem := option.find_problem(value)) is not None:
                return f"{option.name} {problem}"
        limits = self.concurrency or []
        if len({(limit.scope or "fn", limit.key) for limit in limits}) < len(limits):
            return "concurrency has two limits of the same scope and key; keep the smaller"
        if self.batch_events is not None:
            for name, reason in _NOT_WITH_BATCHES.items():
                if getattr(self, name):
                    return f"batch_events and {name} cannot be used together: {reason}"
        return None

    def options_to_wire(self) -> dict[str, Any]:
        """The options in use, as fields of the function's entry in the sync payload."""
        wire = {}
        for option in OPTIONS:
            value = getattr(self, option.name)
            if value is not None:
                entries = [entry.to_wire() if isinstance(entry, Option) else entry for entry in option.entries(value)]
                wire[option.wire_name] = entries if option.most is not None else entries[0]
        return wire


_NOT_WITH_BATCHES = {
    "debounce": "a debounce keeps one event of many, a batch all of them",
    "singleton": "a batch has no single event whose key could be compared",
    "cancel": "a batch has no single event to compare the cancelling one with",
    "priority": "a batch has no single event to take the priority from",
    "rate_limit": "events are dropped one by one, before they make a batch",
    "idempotency": "events are dropped one by one, before they make a batch",
}
"""The options that cannot be combined with batches, and why."""


class DeclaredOption(msgspec.Struct, frozen=True):
    """One field of ``FunctionOptions``.

    ``type`` is that of its entries. ``most`` is set if the field is a list.
    """

    name: str
    wire_name: str
    type: type
    most: int | None

    def entries(self, value: Any) -> list[Any]:
        return [value] if self.most is None else value

    def find_problem(self, value: Any) -> str | None:
        if self.most is None:
            return None if isinstance(value, self.type) else f"takes {self.type.__name__}, not {value!r}"
        if not isinstance(value, list) or not all(isinstance(entry, self.type) for entry in value):
            return f"takes a list of {self.type.__name__}, not {value!r}"
        return None if len(value) <= self.most else f"has {len(value)} entries; at most {self.most} are allowed"


def _declared_options() -> Iterator[DeclaredOption]:
    for field in msgspec.structs.fields(FunctionOptions):
        annotation, *checks = (
            typing.get_args(field.type) if typing.get_origin(field.type) is Annotated else (field.type,)
        )
        kind = typing.get_args(annotation)[0]  # of X | None
        most = checks[0].most if checks and isinstance(checks[0], ListOf) else None
        yield DeclaredOption(field.name, field.encode_name, kind if most is None else typing.get_args(kind)[0], most)


OPTIONS = tuple(_declared_options())


def expressions_of(options: FunctionOptions) -> Iterator[tuple[str, str, Expression]]:
    """The expressions that the options use.

    Each has its position, its source, and the check that an engine must make.
    """
    for option in OPTIONS:
        value = getattr(options, option.name)
        for index, entry in enumerate([] if value is None else option.entries(value)):
            if isinstance(entry, str):
                if entry.strip():
                    yield option.name, entry, Expression()
                continue
            place = option.name if option.most is None else f"{option.name}[{index}]"
            for field, check, _ in _checks_of(entry.__class__):
                text = getattr(entry, field)
                if text is not None and isinstance(check, Expression):
                    yield f"{place}.{field}", text, check


_ZERO = dt.timedelta(0)


def check_type(
    value: object,
    setting: str,
    kind: type | tuple[type, ...],
    article_and_kind: str,
    error: type[Exception] = TypeError,
) -> None:
    """Check a value's type.

    ``True`` is not a number, and a class is not an instance of itself. The message shows no values that may be secret.
    """
    if isinstance(value, type):  # It has the methods that a protocol requires.
        raise error(f"{setting} must be {article_and_kind}, not the class {value.__name__}")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise error(f"{setting} must be {article_and_kind}, not {_shown(value)}")


def check_text(value: object, setting: str, error: type[Exception] = TypeError) -> None:
    """Check a string, or ``None``.

    The message does not show the value, which may be a key.
    """
    if not (value is None or isinstance(value, str)):
        raise error(f"{setting} must be a string, not a value of type {type(value).__name__}")
    if value is not None and not is_encodable(value):
        raise error(f"{setting} must be a string that UTF-8 can encode: it has half of a surrogate pair")


def check_function(value: object, setting: str, error: type[Exception] = TypeError) -> None:
    """Check a function, or ``None``."""
    if not (value is None or callable(value)):
        raise error(f"{setting} must be a function, not {_shown(value)}")


def check_switch(value: object, setting: str, error: type[Exception] = TypeError) -> None:
    """Check ``True``, ``False`` or ``None``.

    A string such as ``"false"`` would count as true.
    """
    if not (value is None or isinstance(value, bool)):
        raise error(f"{setting} must be True or False, not {_shown(value)}")


def check_time_span(value: object, setting: str, *, may_be_zero: bool = False) -> None:
    """Check a ``timedelta``.

    Raises ``TypeError`` for another type, and ``ValueError`` for one that is too short.
    """
    check_type(value, setting, dt.timedelta, "a datetime.timedelta, such as timedelta(seconds=30)")
    assert isinstance(value, dt.timedelta)
    if value < _ZERO or (value == _ZERO and not may_be_zero):
        raise ValueError(f"{setting} must be {'0 or more' if may_be_zero else 'more than 0'}, not {value}")


def check_count(value: object, setting: str) -> None:
    """Check a number.

    Raises ``TypeError`` for any other type than ``int``, and ``ValueError`` for a number below 1.
    """
    check_type(value, setting, int, "a whole number")
    assert isinstance(value, int)
    if value < 1:
        raise ValueError(f"{setting} must be 1 or more, not {value}")


def check_texts(value: object, setting: str, example: str) -> None:
    """Check a collection of strings.

    A single string would be taken as a collection of letters. Raises ``TypeError``.
    """
    if (
        isinstance(value, str | bytes | Mapping)
        or not isinstance(value, Collection)
        or not all(isinstance(text, str) for text in value)
    ):
        raise TypeError(f"{setting} must be a collection of strings, such as {example}, not {_shown(value)}")


def _shown(value: object) -> str:
    """The value in a message.

    Only its type is shown if it may hold a key, a password or a URL with a token.
    """
    is_harmless = value is None or isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 5)
    return repr(value) if is_harmless else f"a value of type {type(value).__name__}"
