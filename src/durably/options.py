"""What a function can be configured with, as users write it (spec §4.3.2).

Durations are milliseconds or ``timedelta``. ``to_wire`` gives the JSON object of the sync payload. Each
class checks itself when made, so that a mistake shows at import, with the option's name.
"""

import datetime as dt
from typing import Any, ClassVar, Literal

import msgspec

from durably.protocol.durations import Duration, DurationInvalidError, format_duration, to_timedelta
from durably.protocol.limits import MAX_BATCH_SIZE, MAX_COUNT

from .errors import FunctionConfigInvalidError


class Option(msgspec.Struct, kw_only=True, frozen=True):
    """Base of the options: checks durations and counts, writes the wire's form."""

    _durations: ClassVar[tuple[str, ...]] = ("timeout", "period", "start", "finish")
    _counts: ClassVar[tuple[str, ...]] = ("limit", "max_size", "burst")
    _least, _most = 1, MAX_COUNT
    _shortest: ClassVar[tuple[dt.timedelta, str]] = (dt.timedelta(seconds=1), "one second")

    def __post_init__(self) -> None:
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value is None:
                if field.required:
                    raise self._invalid(field.name, "is required")
            elif field.name in self._durations:
                msgspec.structs.force_setattr(self, field.name, self._duration(field.name, value))
            elif field.name in self._counts:
                if not isinstance(value, int) or isinstance(value, bool) or not self._least <= value <= self._most:
                    raise self._invalid(
                        field.name, f"must be a whole number from {self._least} to {self._most}, not {value!r}"
                    )
            elif not isinstance(value, str):
                raise self._invalid(field.name, f"must be text, not {value!r}")
            elif field.required and not value.strip():
                raise self._invalid(field.name, "must not be empty")

    def _duration(self, name: str, value: Duration) -> dt.timedelta:
        try:
            delta = to_timedelta(value)
        except DurationInvalidError as error:
            raise FunctionConfigInvalidError(f"{type(self).__name__}.{name}: {error}") from None
        shortest, text = self._shortest
        if delta < shortest:
            found = f"{value} ms" if isinstance(value, int) else repr(value)
            raise self._invalid(name, f"must be at least {text}, not {found}")
        return delta

    def _invalid(self, name: str, problem: str) -> FunctionConfigInvalidError:
        return FunctionConfigInvalidError(f"{type(self).__name__}.{name} {problem}")

    def to_wire(self) -> dict[str, Any]:
        wire = {}
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                wire[field.encode_name] = format_duration(value) if isinstance(value, dt.timedelta) else value
        return wire


class Batch(Option, frozen=True, rename={"max_size": "maxSize", "if_exp": "if"}):
    """Start one run for up to ``max_size`` events, or after ``timeout``; one batch per value of ``key``."""

    _least, _most = 2, MAX_BATCH_SIZE

    max_size: int
    timeout: Duration | None = None
    key: str | None = None
    if_exp: str | None = None


class Cancel(Option, frozen=True, rename={"if_exp": "if"}):
    """Cancel runs by an event; ``if_exp`` compares it (``async``) with the trigger (``event``)."""

    event: str
    if_exp: str | None = None
    timeout: Duration | None = None


class Concurrency(Option, frozen=True):
    """At most ``limit`` steps executing at once, per value of ``key``, within ``scope`` (default ``fn``)."""

    limit: int
    key: str | None = None
    scope: Literal["account", "env", "fn"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope not in (None, "account", "env", "fn"):
            raise self._invalid("scope", f'must be "fn", "env" or "account", not {self.scope!r}')
        if self.scope in ("account", "env") and not self.key:
            raise self._invalid(
                "key", f'is missing: a scope of "{self.scope}" is shared by functions with the same key'
            )


class Debounce(Option, frozen=True):
    """Start a run when no event has come for ``period``, at the latest ``timeout`` after the first."""

    period: Duration
    key: str | None = None
    timeout: Duration | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.timeout is not None and to_timedelta(self.timeout) < to_timedelta(self.period):
            raise self._invalid("timeout", f"is shorter than the period of {format_duration(self.period)}")


class Priority(Option, frozen=True):
    """An expression: by how many seconds (-600 … 600) a run goes ahead in the queue."""

    run: str


class RateLimit(Option, frozen=True):
    """Drop events beyond ``limit`` in ``period``, per value of ``key``."""

    limit: int
    period: Duration
    key: str | None = None


class Singleton(Option, frozen=True):
    """One run at a time per value of ``key``: a new one is skipped, or cancels the running one."""

    mode: Literal["skip", "cancel"]
    key: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("skip", "cancel"):
            raise self._invalid("mode", f'must be "skip" or "cancel", not {self.mode!r}')


class Throttle(Option, frozen=True):
    """Start at most ``limit`` runs in ``period``, plus ``burst``, per value of ``key``; the others wait."""

    limit: int
    period: Duration
    burst: int | None = 1
    key: str | None = None


class Timeouts(Option, frozen=True):
    """Cancel a run that has not begun after ``start``, or not ended ``finish`` after it began."""

    start: Duration | None = None
    finish: Duration | None = None


class TriggerCron(Option, frozen=True):
    """A schedule of five fields, with an optional ``TZ=<zone>`` before them; ``jitter`` like ``30s``."""

    cron: str
    jitter: str | None = None


class TriggerEvent(Option, frozen=True):
    """An event's name, with an optional condition over ``event``.

    ``expression`` is the name of ``if_exp`` in the ``inngest`` package. If one is given, both are set.
    """

    event: str
    if_exp: str | None = None
    expression: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
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


class Checkpointing(Option, frozen=True):
    """Execute several steps in one call, instead of one call for each step.

    A checkpoint sends ``buffered_steps`` finished steps to the engine, or fewer at ``interval`` after the first of
    them finished. Steps without a checkpoint run again if the app dies. After ``max_runtime`` a call executes no
    further step, and the function continues in another call.
    """

    _durations = ("interval", "max_runtime")
    _counts = ("buffered_steps",)
    _shortest = (dt.timedelta(milliseconds=1), "one millisecond")

    buffered_steps: int = 1
    interval: Duration | None = None
    max_runtime: Duration | None = None

    @property
    def interval_seconds(self) -> float | None:
        return _to_seconds(self.interval)

    @property
    def max_runtime_seconds(self) -> float | None:
        return _to_seconds(self.max_runtime)

    def to_wire(self) -> dict[str, Any]:
        names = {"buffered_steps": "batch_steps", "interval": "batch_interval"}
        return {names.get(name, name): value for name, value in super().to_wire().items()}


def check_checkpointing(value: object, owner: str) -> None:
    """Raises ``FunctionConfigInvalidError`` unless it is a choice about checkpointing, or none."""
    if not (value is None or isinstance(value, bool | Checkpointing)):
        raise FunctionConfigInvalidError(f"{owner}: checkpointing takes True, False or Checkpointing, not {value!r}")


def _to_seconds(duration: Duration | None) -> float | None:
    return None if duration is None else to_timedelta(duration).total_seconds()


Trigger = TriggerCron | TriggerEvent
