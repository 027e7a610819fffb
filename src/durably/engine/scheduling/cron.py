"""Cron schedules in the database: each tick plans the next one."""

import msgspec

from durably.engine.core.flow.cron import Schedule, Tick, fire, plan_tick
from durably.engine.views import to_datetime
from durably.protocol.events import InternalEvent

from .event_routing import take_for
from .events import make_internal_event
from .outbox import TickAt
from .registry import Function
from .transaction import Transaction


def plan_schedules(transaction: Transaction, function: Function) -> None:
    """After a sync: schedules that are new begin with their next tick, those that are gone tick no more."""
    planned = transaction.store.flow.schedules(function.id)
    wanted = {schedule.text: schedule for schedule in function.flow.schedules}
    for text in planned.keys() - wanted.keys():
        transaction.store.flow.drop_schedule(function.id, text)
    for text in wanted.keys() - planned.keys():
        _plan(transaction, function, wanted[text], plan_tick(wanted[text], function.id, transaction.now))


def fire_tick(transaction: Transaction, due: TickAt) -> None:
    """A tick is due; nothing happens where it is not any more. One of a paused function starts nothing."""
    planned = transaction.store.flow.schedules(due.function_id).get(due.schedule)
    function = transaction.registry.find(due.function_id)
    if planned is None or planned.due > transaction.now or function is None:
        return
    schedule = next((one for one in function.flow.schedules if one.text == due.schedule), None)
    if schedule is None or not function.is_active:
        return
    fired = fire(schedule, function.id, planned, transaction.now)
    _plan(transaction, function, schedule, fired.upcoming)
    controls = transaction.registry.controls_of(function.id)
    if controls is not None and controls.is_paused:
        return
    data = {
        "cron": schedule.text,
        "fireAt": _to_text(fired.tick.due),
        "scheduledAt": _to_text(fired.tick.at),
    }
    event = make_internal_event(
        InternalEvent.SCHEDULED_TIMER, msgspec.json.encode(data), transaction.new_id(), fired.tick.due
    )
    take_for(transaction, function, event)


def _plan(transaction: Transaction, function: Function, schedule: Schedule, tick: Tick | None) -> None:
    if tick is None:
        transaction.store.flow.drop_schedule(function.id, schedule.text)
    else:
        transaction.store.flow.put_tick(function.id, schedule.text, tick)
        transaction.outbox.append(TickAt(function.id, schedule.text, tick.due))


def _to_text(moment: int) -> str:
    return to_datetime(moment).strftime("%Y-%m-%dT%H:%M:%SZ")
