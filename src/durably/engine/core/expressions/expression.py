"""A compiled expression, and the cache of them."""

import datetime as dt
import functools
import math
from collections.abc import Mapping
from typing import Any

from .analysis import Equality, Kind, possible_kinds, read_equalities
from .compiler import Compiler, Evaluate
from .functions import TypeOf
from .syntax import ExpressionInvalidError, FaultError, Node, parse
from .values import UNKNOWN, Frame, FuelExhaustedError, to_text

_CACHE_SIZE = 2048
_EVENT_FIELDS = ("name", "data", "id", "ts", "user", "v")


class Expression:
    """One expression, compiled. Immutable, and may be evaluated from several threads. Evaluating raises nothing.

    ``missing_field`` says that it reads a field that no event has, if it does. The field's value is unknown, so such a
    condition never holds.

    ``event`` is the trigger, ``async_`` the later event that the expression calls ``async``, both as JSON decodes
    them. ``now`` is the value of ``now()``, in milliseconds since the epoch. ``kinds`` are the kinds of values that it
    may give.
    """

    __slots__ = ("_equalities", "_evaluate", "_variables", "kinds", "missing_field", "text")

    def __init__(self, text: str, compiler: Compiler, node: Node) -> None:
        self.text = text
        self._evaluate: Evaluate = compiler.compile(node)
        self._variables = compiler.variables
        self.missing_field = _explain_missing_field(compiler.event_fields)
        self._equalities = tuple(read_equalities(node))
        self.kinds: frozenset[Kind] = possible_kinds(node)

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def matches(self, event: Mapping[str, Any], async_: Mapping[str, Any] | None = None, *, now: int) -> bool:
        """Whether the result is ``true`` itself: another truthy value is no match, as on the public server."""
        return self._run(event, async_, now) is True

    def value(self, event: Mapping[str, Any], async_: Mapping[str, Any] | None = None, *, now: int) -> Any:
        """The result as JSON has it, for keys and priorities: a bool, a finite number, a text, a list or a dict;
        ``None`` for null and for what is unknown. Times (RFC 3339, ``90s``) and bytes become text."""
        result = self._run(event, async_, now)
        if result is UNKNOWN or (isinstance(result, float) and not math.isfinite(result)):
            return None
        if isinstance(result, dt.datetime | dt.timedelta | bytes):
            return to_text(result)
        return result.name if isinstance(result, TypeOf) else result

    def equalities(self) -> list[Equality]:
        """What holds between a newcomer and an event whenever ``matches`` does. See ``Equality``."""
        return list(self._equalities)

    def _run(self, event: object, newcomer: object, now: int) -> Any:
        frame = Frame(event, UNKNOWN if newcomer is None else newcomer, now, self._variables)
        try:
            return self._evaluate(frame)
        except (FuelExhaustedError, RecursionError):  # too many elements, or data nested too deeply to compare
            return UNKNOWN


def _explain_missing_field(fields: Mapping[str, str]) -> str | None:
    for field, root in fields.items():
        if field not in _EVENT_FIELDS:
            return (
                f"reads {root}.{field}, which no event has (an event has {', '.join(_EVENT_FIELDS)}): write "
                f"{root}.data.{field}"
            )
    return None


@functools.lru_cache(maxsize=_CACHE_SIZE)
def compile_expression(text: str, *, has_async: bool = True) -> Expression:
    """Compile a CEL expression in the protocol's dialect; the last 2,048 are remembered.

    ``has_async`` is whether it may name the newcomer, ``async``, as those of waits and cancellations do.
    Raises ``ExpressionInvalidError``, whose message quotes the expression and names the place and the fault.
    """
    try:
        node = parse(text)
        return Expression(text, Compiler(has_async), node)
    except FaultError as fault:
        raise ExpressionInvalidError(text, fault.reason, fault.place) from None
