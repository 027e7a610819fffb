"""From the text of an expression to its tree: CEL's grammar, as its language definition gives it.

Parsed with lark, by the grammar in ``grammar.lark``. The grammar that the package ``cel-python`` brings was
measured first and set aside: its terminal for strings takes time exponential in the length of an unclosed
string (22 escapes: one second), and with its dependencies it takes four times as long to load. lark's LALR
parser is linear and does not recurse, so that what bounds a hostile expression is its length and the depth
of its tree. lark is imported with the first expression, not before: most processes never meet one.

Knows the form of expressions only: which names and functions there are is the compiler's to say.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .errors import FaultError, Place
from .strings import decode_string

MAX_LENGTH = 10_000
"""Characters of an expression."""
MAX_DEPTH = 50
"""Levels of nesting, not counting parentheses and the terms of one ``&&``, ``||`` or ``+`` chain."""


@dataclass(frozen=True, slots=True)
class Literal:
    value: Any
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Name:
    name: str
    place: Place
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Field:
    """``operand.name``, which is ``operand["name"]`` except to ``has()``."""

    operand: "Node"
    name: str
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Index:
    operand: "Node"
    key: "Node"
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Call:
    """``name(arguments)``, or ``target.name(arguments)``."""

    name: str
    target: "Node | None"
    arguments: tuple["Node", ...]
    place: Place
    depth: int = 1


@dataclass(frozen=True, slots=True)
class ListOf:
    items: tuple["Node", ...]
    depth: int = 1


@dataclass(frozen=True, slots=True)
class MapOf:
    entries: tuple[tuple["Node", "Node"], ...]
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Unary:
    operator: str
    operand: "Node"
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Binary:
    operator: str
    left: "Node"
    right: "Node"
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Chain:
    """Two terms or more of ``&&``, ``||`` or ``+``, flat: a long one is not a deep one."""

    operator: str
    terms: tuple["Node", ...]
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Conditional:
    condition: "Node"
    then: "Node"
    otherwise: "Node"
    depth: int = 1


Node = Literal | Name | Field | Index | Call | ListOf | MapOf | Unary | Binary | Chain | Conditional


class _TreeBuilder:
    """Makes nodes, bottom-up, as the parser reduces; refuses trees that are too deep while they grow."""

    def conditional(self, parts: list[Any]) -> Node:
        condition, then, otherwise = parts
        return Conditional(condition, then, otherwise, depth=_depth_over(parts))

    def chain(self, parts: list[Any]) -> Node:
        terms = tuple(parts[::2])
        return Chain(str(parts[1]), terms, depth=_depth_over(terms))

    def sum(self, parts: list[Any]) -> Node:
        left, operator, right = parts
        if operator == "+" and isinstance(left, Chain) and left.operator == "+":
            return Chain("+", (*left.terms, right), depth=max(left.depth, right.depth + 1))
        if operator == "+":
            return Chain("+", (left, right), depth=_depth_over((left, right)))
        return self.binary(parts)

    def binary(self, parts: list[Any]) -> Node:
        left, operator, right = parts
        return Binary(str(operator), left, right, depth=_depth_over((left, right)))

    def unary(self, parts: list[Any]) -> Node:
        operator, operand = parts
        if operator == "-" and isinstance(operand, Literal) and type(operand.value) in (int, float):
            return Literal(-operand.value)
        return Unary(str(operator), operand, depth=_depth_over((operand,)))

    def field(self, parts: list[Any]) -> Node:
        operand, name = parts
        return Field(operand, str(name), depth=_depth_over((operand,)))

    def index(self, parts: list[Any]) -> Node:
        operand, key = parts
        return Index(operand, key, depth=_depth_over(parts))

    def method(self, parts: list[Any]) -> Node:
        target, name, arguments = parts
        arguments = tuple(arguments or ())
        return Call(str(name), target, arguments, _place(name), depth=_depth_over((target, *arguments)))

    def call(self, parts: list[Any]) -> Node:
        name, arguments = parts
        arguments = tuple(arguments or ())
        return Call(str(name), None, arguments, _place(name), depth=_depth_over(arguments))

    def name(self, parts: list[Any]) -> Node:
        return Name(str(parts[0]), _place(parts[0]))

    def items(self, parts: list[Any]) -> list[Any]:
        *items, last = parts
        if items:
            items = items[0]
        items.append(last)
        return items

    def list_of(self, parts: list[Any]) -> Node:
        items = tuple(parts[0] or ())
        return ListOf(items, depth=_depth_over(items))

    entries = items

    def entry(self, parts: list[Any]) -> tuple[Any, ...]:
        return tuple(parts)

    def map_of(self, parts: list[Any]) -> Node:
        entries = cast(tuple[tuple[Node, Node], ...], tuple(parts[0] or ()))
        return MapOf(entries, depth=_depth_over([node for pair in entries for node in pair]))

    def true(self, parts: list[Any]) -> Node:
        return Literal(True)

    def false(self, parts: list[Any]) -> Node:
        return Literal(False)

    def null(self, parts: list[Any]) -> Node:
        return Literal(None)

    def integer(self, parts: list[Any]) -> Node:
        digits = parts[0].rstrip("uU")
        value = int(digits, 16 if digits[:2] in ("0x", "0X") else 10) if len(digits) <= 30 else 2**64
        if value > 2**63:  # as large as the least integer's absolute value, whose minus sign comes after
            raise FaultError(f"the integer {parts[0][:40]} does not fit in 64 bits", _place(parts[0]))
        return Literal(value)

    def double(self, parts: list[Any]) -> Node:
        return Literal(float(parts[0]))

    def string(self, parts: list[Any]) -> Node:
        try:
            return Literal(decode_string(str(parts[0])))
        except ValueError as error:
            raise FaultError(str(error), _place(parts[0])) from None


def _depth_over(nodes: Any) -> int:
    depth = 1 + max((node.depth for node in nodes), default=0)
    if depth > MAX_DEPTH:
        raise FaultError(f"it is nested more than {MAX_DEPTH} levels deep")
    return depth


def _place(token: Any) -> Place:
    return Place(token.line, token.column)


@functools.cache
def _load_parser() -> Callable[[str], Node]:
    import lark

    transformer = type("TreeBuilder", (_TreeBuilder, lark.Transformer), {})()
    grammar = Path(__file__).with_name("grammar.lark").read_text()
    parser = lark.Lark(grammar, parser="lalr", transformer=transformer, maybe_placeholders=True)

    def parse(text: str) -> Node:
        try:
            return parser.parse(text)  # type: ignore[return-value]
        except lark.UnexpectedCharacters as error:
            reason = "a text is not closed" if error.char in "\"'" else f"unexpected {error.char!r}"
            raise FaultError(reason, Place(error.line, error.column)) from None
        except lark.UnexpectedToken as error:
            if error.token.type == "$END":
                raise FaultError("it ends too early") from None
            raise FaultError(f"unexpected {str(error.token)[:40]!r}", Place(error.line, error.column)) from None

    return parse


def parse(text: str) -> Node:
    """Raises ``FaultError`` for text that is no expression, too long, or too deeply nested."""
    if len(text) > MAX_LENGTH:
        raise FaultError(f"it has {len(text)} characters; at most {MAX_LENGTH} are allowed")
    return _load_parser()(text)
