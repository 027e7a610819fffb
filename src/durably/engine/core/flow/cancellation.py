"""Cancellation by event, and timeouts of starts and runs."""

import msgspec

from durably.engine.core.expressions import Expression, Kind
from durably.protocol import sync
from durably.protocol.limits import MAX_CANCELS, MAX_EVENT_NAME_LENGTH

from .option_values import Deadline, OptionReader


class CancelRule(msgspec.Struct, frozen=True):
    """In ``condition``, ``event`` is the run's trigger and ``async`` the newcomer."""

    event: str
    condition: Expression | None = None
    timeout: Deadline | None = None


class CancelOn(msgspec.Struct, frozen=True):
    """What one run listens to; ``until`` is ``None`` where that is until it ends."""

    event: str
    condition: Expression | None = None
    until: int | None = None


def read_cancels(config: list[sync.Cancel] | None, reader: OptionReader) -> tuple[CancelRule, ...]:
    entries = config or []
    if len(entries) > MAX_CANCELS:
        raise reader.refuse("cancel", f"has {len(entries)} entries; at most {MAX_CANCELS} are possible")
    return tuple(_read_cancel(entry, reader) for entry in entries)


def listen(rules: tuple[CancelRule, ...], now: int) -> tuple[CancelOn, ...]:
    """What a run admitted ``now`` listens to."""
    return tuple(
        CancelOn(rule.event, rule.condition, None if rule.timeout is None else rule.timeout.counted_from(now))
        for rule in rules
    )


def _read_cancel(config: sync.Cancel, reader: OptionReader) -> CancelRule:
    if not config.event:
        raise reader.refuse("cancel.event", "is empty; it must be the name of an event")
    if len(config.event) > MAX_EVENT_NAME_LENGTH:
        raise reader.refuse("cancel.event", f"has more than {MAX_EVENT_NAME_LENGTH} characters")
    return CancelRule(
        config.event,
        reader.expression("cancel.if_exp", config.if_exp, has_async=True, gives=Kind.BOOL),
        reader.deadline("cancel.timeout", config.timeout),
    )


class Timeouts(msgspec.Struct, frozen=True):
    start: Deadline | None = None
    finish: Deadline | None = None

    def start_by(self, admitted_at: int) -> int | None:
        return None if self.start is None else self.start.counted_from(admitted_at)

    def finish_by(self, started_at: int) -> int | None:
        return None if self.finish is None else self.finish.counted_from(started_at)


def read_timeouts(config: sync.Timeouts | None, reader: OptionReader) -> Timeouts:
    if config is None:
        return Timeouts()
    return Timeouts(reader.deadline("timeouts.start", config.start), reader.deadline("timeouts.finish", config.finish))
