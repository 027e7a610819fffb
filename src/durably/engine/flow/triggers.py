"""Checking a function's triggers. Schedules are read in ``cron``."""

from collections.abc import Sequence

from durably.engine.expressions import Kind
from durably.protocol.limits import MAX_EVENT_NAME_LENGTH, MAX_TRIGGERS
from durably.protocol.sync import Trigger

from .reading import OptionReader


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
