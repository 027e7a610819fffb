"""The syntax of CEL: literals, the grammar, and the errors of expressions."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from durably.protocol.engine_errors import EngineError
from durably.protocol.errors import ErrorCode

_SHOWN_LENGTH = 200


class Position(NamedTuple):
    """A position in an expression; both numbers begin at one."""

    line: int
    column: int


class ExpressionInvalidError(EngineError):
    """An expression is not valid.

    The message quotes it, with the position of the error and the remedy.
    """

    code = ErrorCode.FUNCTION_CONFIG_INVALID

    def __init__(self, text: str, reason: str, position: Position | None = None) -> None:
        shown = text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}…"
        where = f" at line {position.line}, column {position.column}" if position else ""
        super().__init__(f"the expression `{shown}` is not valid{where}: {reason}")
        self.text = text
        self.position = position
        self.reason = reason


class ExpressionSyntaxError(Exception):
    """An error in an expression.

    It is raised again as ``ExpressionInvalidError``, with the whole expression.
    """

    def __init__(self, reason: str, position: Position | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.position = position


_ESCAPE = re.compile(
    r"\\(?:([0-3][0-7][0-7])|[xX]([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([abfnrtv\\?\"'`]))"
)
_SIMPLE = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
}


def decode_string(literal: str) -> str | bytes:
    """The value of a literal as written, quotes and prefix included.

    Raises ``ValueError`` naming a bad escape.
    """
    opening = min(position for position in (literal.find('"'), literal.find("'")) if position >= 0)
    prefix = literal[:opening].lower()
    quotes = 3 if literal[opening : opening + 3] in ('"""', "'''") and len(literal) >= opening + 6 else 1
    content = literal[opening + quotes : -quotes]
    if "b" in prefix:
        return _decode_bytes(content, is_raw="r" in prefix)
    return content if "r" in prefix else _ESCAPE.sub(_decode_escape, content)


def _decode_escape(match: re.Match[str]) -> str:
    octal, hexadecimal, short, long, simple = match.groups()
    if simple:
        return _SIMPLE.get(simple, simple)
    code = int(octal, 8) if octal else int(hexadecimal or short or long, 16)
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise ValueError(f"the escape {match[0]} is not a Unicode character")
    return chr(code)


def _decode_bytes(content: str, is_raw: bool) -> bytes:
    """Decode a bytes literal, in which ``\\x`` and octal escapes are bytes."""
    if is_raw:
        return content.encode()
    decoded = bytearray()
    position = 0
    for match in _ESCAPE.finditer(content):
        decoded += content[position : match.start()].encode()
        octal, hexadecimal = match[1], match[2]
        if octal or hexadecimal:
            decoded.append(int(octal, 8) if octal else int(hexadecimal, 16))
        else:
            decoded += _decode_escape(match).encode()
        position = match.end()
    return bytes(decoded + content[position:].encode())


MAX_LENGTH = 10_000
"""Maximum number of characters of an expression."""
MAX_DEPTH = 50
"""Maximum nesting, without parentheses and the terms of one ``&&``, ``||`` or ``+`` chain."""


@dataclass(frozen=True, slots=True)
class Literal:
    value: Any


@dataclass(frozen=True, slots=True)
class Name:
    name: str
    position: Position


@dataclass(frozen=True, slots=True)
class Field:
    """``operand.name``, which is ``operand["name"]`` except to ``has()``."""

    operand: "Node"
    name: str


@dataclass(frozen=True, slots=True)
class Index:
    operand: "Node"
    key: "Node"


@dataclass(frozen=True, slots=True)
class Call:
    """``name(arguments)``, or ``target.name(arguments)``."""

    name: str
    target: "Node | None"
    arguments: tuple["Node", ...]
    position: Position


@dataclass(frozen=True, slots=True)
class ListOf:
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class MapOf:
    entries: tuple[tuple["Node", "Node"], ...]


@dataclass(frozen=True, slots=True)
class Unary:
    operator: str
    operand: "Node"


@dataclass(frozen=True, slots=True)
class Binary:
    operator: str
    left: "Node"
    right: "Node"


@dataclass(frozen=True, slots=True)
class Chain:
    """Two terms or more of ``&&``, ``||`` or ``+``.

    The chain is flat: a long one is not a deep one.
    """

    operator: str
    terms: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Conditional:
    condition: "Node"
    then: "Node"
    otherwise: "Node"


Node = Literal | Name | Field | Index | Call | ListOf | MapOf | Unary | Binary | Chain | Conditional


class _TreeBuilder:
    """Creates nodes, bottom-up, as the parser reduces."""

    def conditional(self, parts: list[Any]) -> Node:
        return Conditional(*parts)

    def chain(self, parts: list[Any]) -> Node:
        return Chain(str(parts[1]), tuple(parts[::2]))

    def sum(self, parts: list[Any]) -> Node:
        left, operator, right = parts
        if operator != "+":
            return self.binary(parts)
        terms = left.terms if isinstance(left, Chain) and left.operator == "+" else (left,)
        return Chain("+", (*terms, right))

    def binary(self, parts: list[Any]) -> Node:
        left, operator, right = parts
        return Binary(str(operator), left, right)

    def unary(self, parts: list[Any]) -> Node:
        operator, operand = parts
        if operator == "-" and isinstance(operand, Literal) and type(operand.value) in (int, float):
            return Literal(-operand.value)
        return Unary(str(operator), operand)

    def field(self, parts: list[Any]) -> Node:
        return Field(parts[0], str(parts[1]))

    def index(self, parts: list[Any]) -> Node:
        return Index(*parts)

    def method(self, parts: list[Any]) -> Node:
        target, name, arguments = parts
        return Call(str(name), target, tuple(arguments or ()), _position(name))

    def call(self, parts: list[Any]) -> Node:
        name, arguments = parts
        return Call(str(name), None, tuple(arguments or ()), _position(name))

    def name(self, parts: list[Any]) -> Node:
        return Name(str(parts[0]), _position(parts[0]))

    def items(self, parts: list[Any]) -> list[Any]:
        *items, last = parts
        if items:
            items = items[0]
        items.append(last)
        return items

    def list_of(self, parts: list[Any]) -> Node:
        return ListOf(tuple(parts[0] or ()))

    entries = items

    def entry(self, parts: list[Any]) -> tuple[Any, ...]:
        return tuple(parts)

    def map_of(self, parts: list[Any]) -> Node:
        return MapOf(tuple(parts[0] or ()))

    def true(self, parts: list[Any]) -> Node:
        return Literal(True)

    def false(self, parts: list[Any]) -> Node:
        return Literal(False)

    def null(self, parts: list[Any]) -> Node:
        return Literal(None)

    def integer(self, parts: list[Any]) -> Node:
        digits = parts[0].rstrip("uU")
        value = int(digits, 16 if digits[:2] in ("0x", "0X") else 10) if len(digits) <= 30 else 2**64
        if value > 2**63:  # the absolute value of the least integer, whose minus sign is a separate node
            raise ExpressionSyntaxError(f"the integer {parts[0][:40]} does not fit in 64 bits", _position(parts[0]))
        return Literal(value)

    def double(self, parts: list[Any]) -> Node:
        return Literal(float(parts[0]))

    def string(self, parts: list[Any]) -> Node:
        try:
            return Literal(decode_string(str(parts[0])))
        except ValueError as error:
            raise ExpressionSyntaxError(str(error), _position(parts[0])) from None


def _position(token: Any) -> Position:
    return Position(token.line, token.column)


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
            reason = "a string is not closed" if error.char in "\"'" else f"unexpected {error.char!r}"
            raise ExpressionSyntaxError(reason, Position(error.line, error.column)) from None
        except lark.UnexpectedToken as error:
            if error.token.type == "$END":
                raise ExpressionSyntaxError("it ends too early") from None
            raise ExpressionSyntaxError(
                f"unexpected {str(error.token)[:40]!r}", Position(error.line, error.column)
            ) from None

    return parse


def parse(text: str) -> Node:
    """Parse an expression.

    Raises ``ExpressionSyntaxError`` for a string that is not an expression, or too long.
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionSyntaxError(f"it has {len(text)} characters; at most {MAX_LENGTH} are allowed")
    return _load_parser()(text)
