"""Analysis of expressions: the equalities that they require, and the kinds of values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .compiler import split_path
from .syntax import Binary, Call, Chain, Conditional, ListOf, Literal, MapOf, Node, Unary
from .values import Path, read_path, to_index_key


@dataclass(frozen=True, slots=True)
class Equality:
    """``async_path`` below the newcomer equals ``event_path`` below the trigger, or ``literal`` where that is ``None``.

    Compare by keys: short texts that are the same for values that the dialect holds equal (1 and 1.0, null and a
    missing field). Store ``wanted_key(event)`` with the wait; look waits up by ``found_key(newcomer)``.
    """

    async_path: Path
    event_path: Path | None = None
    literal: Any = None

    def wanted_key(self, event: Mapping[str, Any]) -> str:
        return to_index_key(self.literal if self.event_path is None else read_path(event, self.event_path))

    def found_key(self, newcomer: Mapping[str, Any]) -> str:
        return to_index_key(read_path(newcomer, self.async_path))


def read_equalities(node: Node) -> Iterator[Equality]:
    """From the terms of ``&&`` alone: what stands under ``||``, ``!`` or ``?:`` need not hold."""
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


class Kind(StrEnum):
    BOOL = "true or false"
    NUMBER = "a number"
    TEXT = "a text"
    NULL = "null"
    LIST = "a list"
    MAP = "a map"


_ANY = frozenset(Kind)
_BOOL = frozenset({Kind.BOOL})
_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=", "in")
_CONDITIONS = ("has", "exists", "all", "exists_one", "existsOne")


def possible_kinds(node: Node) -> frozenset[Kind]:
    """A value that is missing counts as null, and may come of anything but a literal."""
    match node:
        case Literal(value=value):
            return frozenset({_kind_of_literal(value)})
        case ListOf():
            return frozenset({Kind.LIST})
        case MapOf():
            return frozenset({Kind.MAP, Kind.NULL})
        case Unary(operator="!"):
            return _BOOL | {Kind.NULL}
        case Binary(operator=operator) if operator in _COMPARISONS:
            return _BOOL | {Kind.NULL}
        case Call(name=name) if name in _CONDITIONS:
            return _BOOL | {Kind.NULL}
        case Chain(operator="&&" | "||", terms=terms):
            return frozenset().union(*map(possible_kinds, terms))
        case Conditional(then=then, otherwise=otherwise):
            return possible_kinds(then) | possible_kinds(otherwise)
        case _:
            return _ANY


def _kind_of_literal(value: object) -> Kind:
    match value:
        case None:
            return Kind.NULL
        case bool():
            return Kind.BOOL
        case int() | float():
            return Kind.NUMBER
        case _:
            return Kind.TEXT
