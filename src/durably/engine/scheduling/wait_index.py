"""The index of waits for events: the place in an event, and the value there, that an expression requires."""

from collections.abc import Mapping
from typing import Any

import msgspec

from durably.engine.core.expressions import Equality, Expression

_path_decoder = msgspec.json.Decoder(tuple[str | int, ...])


def index_key(expression: Expression | None, trigger: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The path in a new event, and the value that it must have there, as stored; ``None`` twice if the expression
    requires none. ``trigger`` is the event of the waiting run."""
    equality = None if expression is None else _most_selective(expression.equalities())
    if equality is None:
        return None, None
    return msgspec.json.encode(equality.async_path).decode(), equality.wanted_key(trigger)


def value_at(path: str | None, newcomer: Mapping[str, Any]) -> str | None:
    """The value that an event has at a path that ``index_key`` returned."""
    return None if path is None else Equality(_path_decoder.decode(path)).found_key(newcomer)


def _most_selective(equalities: list[Equality]) -> Equality | None:
    """The equality that leaves the fewest waits: with the trigger's own data rather than with a constant."""
    with_trigger = (equality for equality in equalities if equality.event_path is not None)
    return next(with_trigger, None) or next(iter(equalities), None)
