"""What kinds of value an expression may give, told from its form alone.

Sound, not complete: a kind that is left out is never given, but one that is named need not ever be. It serves to refuse
options whose expression cannot give what they need, such as a priority of ``'high'``.
"""

from enum import StrEnum

from .syntax import Binary, Call, Chain, Conditional, ListOf, Literal, MapOf, Node, Unary


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
