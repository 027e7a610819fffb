"""Expressions: CEL over ``event`` and ``async`` in a tolerant dialect, which is the protocol's.

``compile_expression`` parses a string (``syntax``) and compiles it (``compiler``, over ``functions``) into an
``Expression``, which evaluates conditions and keys, and has the equalities that index waits.
"""

import datetime as dt
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .compiler import Compiler, Evaluate, split_path
from .functions import (
    UNKNOWN,
    Frame,
    FuelExhaustedError,
    Path,
    TypeOf,
    read_path,
    to_index_key,
    to_text,
)
from .syntax import (
    Binary,
    Chain,
    ExpressionInvalidError,
    ExpressionSyntaxError,
    Field,
    Index,
    Literal,
    Name,
    Node,
    parse,
)

__all__ = ["Equality", "Expression", "ExpressionInvalidError", "compile_expression"]


_CACHE_SIZE = 2048
_EVENT_FIELDS = ("name", "data", "id", "ts", "user", "v", "meta")


@dataclass(frozen=True, slots=True)
class Equality:
    """An equality between the later event and the trigger, or a literal.

    ``async_path`` in the later event equals ``event_path`` in the trigger, or ``literal`` if that is ``None``.

    Compare by keys. A key is a short string, equal for values that are equal in the dialect (1 and 1.0, null and a
    missing field). Store ``wanted_key(event)`` with the wait, and find waits by ``found_key(later)``.
    """

    async_path: Path
    event_path: Path | None = None
    literal: Any = None

    def wanted_key(self, event: Mapping[str, Any]) -> str:
        return to_index_key(self.literal if self.event_path is None else read_path(event, self.event_path))

    def found_key(self, later: Mapping[str, Any]) -> str:
        return to_index_key(read_path(later, self.async_path))


def read_equalities(node: Node) -> Iterator[Equality]:
    """The equalities that a tree requires.

    Only terms of ``&&`` count, because others need not be true.
    """
    match node:
        case Chain(operator="&&", terms=terms):
            for term in terms:
                yield from read_equalities(term)
        case Binary(operator="==", left=left, right=right):
            equality = _read_equality(left, right) or _read_equality(right, left)
            if equality:
                yield equality


def _read_equality(async_side: Node, other: Node) -> Equality | None:
    path = split_path(async_side)
    if path is None or path[0] != "async":
        return None
    if isinstance(other, Literal):
        return Equality(path[1], literal=other.value)
    other_path = split_path(other)
    if other_path is None or other_path[0] != "event":
        return None
    return Equality(path[1], event_path=other_path[1])


def read_trigger_paths(node: object) -> Iterator[Path]:
    """The paths in the trigger that a tree reads, up to their first computed keys."""
    path = split_path(node) if isinstance(node, Field | Index | Name) else None
    if path is not None:
        if path[0] == "event":
            yield path[1]
    elif isinstance(node, tuple):
        for each in node:
            yield from read_trigger_paths(each)
    elif isinstance(node, Node):
        for field in fields(node):
            yield from read_trigger_paths(getattr(node, field.name))


class Expression:
    """A compiled expression.

    Immutable, and may be evaluated from several threads. Evaluating raises no errors.

    ``event`` is the trigger, ``async_`` the later event that the expression calls ``async``, both as decoded JSON.
    ``now`` is the value of ``now()``, in milliseconds since the epoch.

    - ``is_constant``: It reads no event.
    - ``is_equality``: It consists of a single one of its ``equalities``.
    - ``missing_field``: Set if it reads a field that events do not have. The field's value is unknown, so such a
      condition is never true.
    """

    __slots__ = (
        "_equalities",
        "_evaluate",
        "_trigger_paths",
        "_variables",
        "is_constant",
        "is_equality",
        "missing_field",
        "text",
    )

    def __init__(self, text: str, compiler: Compiler, node: Node) -> None:
        self.text = text
        self._evaluate: Evaluate = compiler.compile(node)
        self._variables = compiler.variables
        self.is_constant = compiler.is_constant
        self.missing_field = _explain_missing_field(compiler.event_fields)
        self._equalities = tuple(read_equalities(node))
        self._trigger_paths = frozenset(read_trigger_paths(node))
        self.is_equality = isinstance(node, Binary) and len(self._equalities) == 1

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def matches(self, event: Mapping[str, Any], async_: Mapping[str, Any] | None = None, *, now: int) -> bool:
        """Whether the result is ``true`` itself.

        Other truthy values do not match, as on the public server.
        """
        return self._run(event, async_, now) is True

    def value(self, event: Mapping[str, Any], async_: Mapping[str, Any] | None = None, *, now: int) -> Any:
        """The result as JSON, for keys and priorities.

        It is a bool, a finite number, a string, a list or a dict; ``None`` for null and unknown values. Times (RFC
        3339, ``90s``) and bytes become strings.
        """
        result = self._run(event, async_, now)
        if result is UNKNOWN or (isinstance(result, float) and not math.isfinite(result)):
            return None
        if isinstance(result, dt.datetime | dt.timedelta | bytes):
            return to_text(result)
        return result.name if isinstance(result, TypeOf) else result

    def equalities(self) -> list[Equality]:
        """Equalities between the later event and the trigger.

        They are true whenever ``matches`` is.
        """
        return list(self._equalities)

    def part_of(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        """The part of a trigger that the expression reads.

        It gives the same result as the whole trigger.
        """
        part: dict[str, Any] = {}
        for path in self._trigger_paths:
            if not path:
                return event
            _copy_path(path, event, part)
        return part

    def _run(self, event: object, later: object, now: int) -> Any:
        frame = Frame(event, UNKNOWN if later is None else later, now, self._variables)
        try:
            return self._evaluate(frame)
        except (FuelExhaustedError, RecursionError):  # too many elements, or data nested too deeply to compare
            return UNKNOWN


def _copy_path(path: Path, event: Mapping[Any, Any], part: dict[Any, Any]) -> None:
    """Copy a path as far as it leads through maps, with everything below it."""
    *parents, last = path
    for key in parents:
        below = event.get(key)
        if not isinstance(below, dict):
            last = key
            break
        event, part = below, part.setdefault(key, {})
    if last in event:
        part[last] = event[last]


def _explain_missing_field(fields: Mapping[str, str]) -> str | None:
    for field, root in fields.items():
        if field not in _EVENT_FIELDS:
            return (
                f"reads {root}.{field}, which no event has (an event has {', '.join(_EVENT_FIELDS)}): write "
                f"{root}.data.{field}"
            )
    return None


@functools.lru_cache(maxsize=_CACHE_SIZE)
def compile_expression(text: str, *, has_async: bool = True, has_output: bool = False) -> Expression:
    """Compile a CEL expression in the protocol's dialect. The last 2,048 are cached.

    ``has_async``: the expression may name the later event, ``async``, as in waits and cancellations. ``has_output``: it
    may name the ``output`` of a run instead, which is then evaluated as the later event. Raises
    ``ExpressionInvalidError``, whose message quotes the expression and states the position and the error.
    """
    try:
        node = parse(text)
        return Expression(text, Compiler(has_async and not has_output, has_output), node)
    except ExpressionSyntaxError as error:
        raise ExpressionInvalidError(text, error.reason, error.position) from None
