"""Cron schedules in the database: each tick plans the next one."""

from typing import TYPE_CHECKING

import msgspec

from durably.engine.core.flow.cron import Schedule, Tick, fire, plan_tick
from durably.engine.sqlite.views import to_datetime
from durably.protocol.events import InternalEvent

from .events import announce
from .outbox import TickAt
from .registry import Function

if TYPE_CHECKING:
    from .transaction import Entry


def plan_schedules(entry: "Entry", function: Function) -> None:
    """After a sync: schedules that are new begin with their next tick, those that are gone tick no more."""
    planned = entry.store.flow.schedules(function.id)
    wanted = {schedule.text: schedule for schedule in function.flow.schedules}
    for text in planned.keys() - wanted.keys():
        entry.store.flow.drop_schedule(function.id, text)
    for text in wanted.keys() - planned.keys():
        _plan(entry, function, wanted[text], plan_tick(wanted[text], function.id, entry.now))


def fire_tick(entry: "Entry", due: TickAt) -> None:
    """A tick is due; nothing happens where it is not any more. One of a paused function starts nothing."""
    planned = entry.store.flow.schedules(due.function_id).get(due.schedule)
    function = entry.registry.find(due.function_id)
    if planned is None or planned.due > entry.now or function is None:
        return
    schedule = next((one for one in function.flow.schedules if one.text == due.schedule), None)
    if schedule is None or not function.is_active:
        return
    fired = fire(schedule, function.id, planned, entry.now)
    _plan(entry, function, schedule, fired.upcoming)
    restraint = entry.registry.restraint_of(function.id)
    if restraint is not None and restraint.is_paused:
        return
    data = {
        "cron": schedule.text,
        "fireAt": _to_text(fired.tick.due),
        "scheduledAt": _to_text(fired.tick.at),
    }
    event = announce(InternalEvent.SCHEDULED_TIMER, msgspec.json.encode(data), entry.new_id(), fired.tick.due)
    entry.events.take_for(function, event)


def _plan(entry: "Entry", function: Function, schedule: Schedule, tick: Tick | None) -> None:
    if tick is None:
        entry.store.flow.drop_schedule(function.id, schedule.text)
    else:
        entry.store.flow.put_tick(function.id, schedule.text, tick)
        entry.effects.append(TickAt(function.id, schedule.text, tick.due))


def _to_text(moment: int) -> str:
    return to_datetime(moment).strftime("%Y-%m-%dT%H:%M:%SZ")
