"""The keys by which events find the waits of runs. Pure."""

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from durably.engine.core.expressions import compile_expression
from durably.engine.model.events import index_key
from durably.engine.temporal.messages import CancelRecord, Condition, MatchInput, RunInput, WaitRecord

_EXACT_KEYS = ("text:", "hash:", "true", "false")
"""Prefixes of keys that only equal values share. Null and missing fields have the same key."""
_NUMBER = "number:"
_LARGEST_EXACT = 2**53
"""Larger numbers are rounded in keys."""

MAX_CONDITION_BYTES = 4096
"""Maximum size of a condition, with the part of the trigger that it reads. A wait workflow stores the conditions of all
its waits."""


class WaitKey(msgspec.Struct, frozen=True):
    """The path of the wait index, and the value that an event must have there.

    Both are ``None`` if no value is required. ``is_exact``: each event with this value meets the whole condition.
    """

    path: str | None = None
    value: str | None = None
    is_exact: bool = True


def wait_key(expression: str | None, trigger: Mapping[str, Any]) -> WaitKey:
    """The key of a wait with a condition. ``trigger`` is the event of the waiting run."""
    if expression is None:
        return WaitKey()
    condition = compile_expression(expression)
    path, value = index_key(condition, trigger)
    return WaitKey(path, value, condition.is_equality and value is not None and _has_own_key(value))


def condition_of(expression: str | None, trigger: Mapping[str, Any]) -> Condition | None:
    """The condition of a wait, or ``None`` if it reads too much of the trigger."""
    if expression is None:
        return None
    part = msgspec.json.encode(compile_expression(expression).part_of(trigger))
    if len(expression.encode()) + len(part) > MAX_CONDITION_BYTES:
        return None
    return Condition(expression, msgspec.Raw(part))


_MATCH_SECONDS = 5.0
"""Seconds for all conditions of one event. Conditions may be slow and many."""


def matching(wanted: MatchInput, now: int, seconds: float = _MATCH_SECONDS) -> list[int]:
    """The indexes of the conditions that an event may meet.

    After ``seconds`` all remaining conditions count as met: their runs evaluate them again.
    """
    fields = msgspec.json.decode(wanted.event.body)
    end = time.monotonic() + seconds
    return [
        index
        for index, condition in enumerate(wanted.conditions)
        if time.monotonic() >= end
        or compile_expression(condition.expression).matches(msgspec.json.decode(condition.trigger), fields, now=now)
    ]


def _has_own_key(value: str) -> bool:
    if value.startswith(_NUMBER):
        number = value.removeprefix(_NUMBER)
        return number != "large" and abs(float(number)) < _LARGEST_EXACT
    return value.startswith(_EXACT_KEYS)


def path_of(expression: str | None) -> str | None:
    """The path in the key of every wait with this condition."""
    return wait_key(expression, {}).path


_CANCEL_PREFIX = "cancel:"


def cancel_step_id(position: int) -> str:
    """The id, in place of a step id, for an event that cancels a run.

    ``position`` is the position in ``cancel_on``.
    """
    return f"{_CANCEL_PREFIX}{position}"


def cancel_position(step_id: str) -> int | None:
    """The position of a ``cancel_step_id``, or ``None`` for a step id."""
    position = step_id.removeprefix(_CANCEL_PREFIX)
    return int(position) if position != step_id and position.isdecimal() else None


def cancel_waits(run: RunInput) -> tuple[WaitRecord, ...]:
    """The waits for the events that cancel a run."""
    if not run.cancel_on:
        return ()
    trigger = msgspec.json.decode(run.events[0].body)
    return tuple(_cancel_wait(run, position, cancel, trigger) for position, cancel in enumerate(run.cancel_on))


def _cancel_wait(run: RunInput, position: int, cancel: CancelRecord, trigger: Mapping[str, Any]) -> WaitRecord:
    key = wait_key(cancel.expression, trigger)
    return WaitRecord(
        run_id=run.run_id,
        step_id=cancel_step_id(position),
        event=cancel.event,
        until=cancel.until,
        path=key.path,
        value=key.value,
        is_exact=key.is_exact,
        is_early=True,
        ignored=tuple(event.id for event in run.events),
        condition=condition_of(cancel.expression, trigger),
    )
