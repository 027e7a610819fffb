"""Visibility queries: Temporal's list filters as trees.

A client's query is parsed with a grammar and written again from the tree, with our own quoting: it cannot escape from
the parentheses around it. Source: https://docs.temporal.io/list-filter, and the lexer of the server 1.32.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from durably.temporal.errors import TemporalSettingsError
from durably.temporal.gateway.problems import Problem, bad_request

MAX_LENGTH = 2000
"""Maximum number of characters of a query."""
MAX_DEPTH = 20
"""Maximum number of levels of AND, OR and NOT. Parentheses are not counted."""

_GRAMMAR = r"""
?start: any_of
?any_of: all_of (OR all_of)*
?all_of: negation (AND negation)*
?negation: NOT negation
    | condition
    | "(" any_of ")"
condition: name (EQUAL | UNEQUAL | LESS | LESS_OR_EQUAL | GREATER | GREATER_OR_EQUAL | STARTS_WITH) value  -> comparison
    | name NOT STARTS_WITH value                   -> not_starts_with
    | name [NOT] IN "(" value ("," value)* ")"     -> membership
    | name [NOT] BETWEEN value AND value           -> range
    | name IS [NOT] NULL                           -> null
?name: NAME                                        -> plain_name
    | QUOTED_NAME                                  -> quoted_name
?value: TEXT                                       -> text
    | NUMBER                                       -> number
    | TRUE                                         -> true
    | FALSE                                        -> false

AND.2: /and\b/i
OR.2: /or\b/i
NOT.2: /not\b/i
IN.2: /in\b/i
BETWEEN.2: /between\b/i
IS.2: /is\b/i
NULL.2: /null\b/i
TRUE.2: /true\b/i
FALSE.2: /false\b/i
STARTS_WITH.2: /starts_with\b/i
EQUAL: "="
UNEQUAL: "!=" | "<>"
LESS_OR_EQUAL: "<="
GREATER_OR_EQUAL: ">="
LESS: "<"
GREATER: ">"
NAME: /[A-Za-z_][A-Za-z0-9_]*/
QUOTED_NAME: /`[^`\\\x00-\x1f\x7f]+`/
TEXT: /'([^'\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f]|'')*'|"([^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f]|"")*"/
NUMBER: /[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?(?![A-Za-z0-9_.@])/
%ignore /[ \t\r\n]+/
"""

_UNSUPPORTED = frozenset({"order", "group", "limit", "like", "regexp", "having", "select", "union"})
_DECODED = {"0": "\0", "b": "\b", "n": "\n", "r": "\r", "t": "\t", "Z": "\x1a"}
"""Characters with a meaning after a backslash."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Number:
    """A number as written. Only the server knows whether it must be an integer."""

    digits: str


Value = str | bool | Number


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on one search attribute.

    ``operator`` is one of ``=``, ``IN``, ``NOT BETWEEN``, ``IS NULL``, for example.
    """

    attribute: str
    operator: str
    values: tuple[Value, ...] = ()
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Negation:
    operand: "Filter"
    depth: int


@dataclass(frozen=True, slots=True)
class Junction:
    """Two or more filters, joined by ``AND`` or ``OR``."""

    operator: str
    operands: tuple["Filter", ...]
    depth: int


Filter = Condition | Negation | Junction


def compare(attribute: str, operator: str, value: Value) -> Filter:
    """A condition. Raises a problem for a string that the server cannot search."""
    return Condition(attribute, operator, (_checked(value),))


def all_of(first: Filter, *others: Filter) -> Filter:
    return _joined("AND", (first, *others))


def parse(text: str) -> Filter:
    """The tree of a client's query. Raises a problem with the position of the error."""
    if len(text) > MAX_LENGTH:
        raise bad_request(f"the visibility query has {len(text)} characters; at most {MAX_LENGTH} are allowed")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad_request("the visibility query is not valid Unicode") from None
    return _load_parser()(text)


def write(filter: Filter) -> str:
    """The filter in the server's language."""
    match filter:
        case Junction(operator, operands):
            return "(" + f" {operator} ".join(write(operand) for operand in operands) + ")"
        case Negation(operand):
            return f"NOT ({write(operand)})"
        case Condition(attribute, operator, values):
            return f"`{attribute}` {operator} {_write_values(operator, values)}".rstrip(" ")


def _write_values(operator: str, values: tuple[Value, ...]) -> str:
    written = [_write_value(value) for value in values]
    if operator.endswith("BETWEEN"):
        return " AND ".join(written)
    return f"({', '.join(written)})" if operator.endswith("IN") else "".join(written)


def _write_value(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Number):
        return value.digits
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _checked(value: Value) -> Value:
    """The value. Raises a problem for a string that the server cannot search."""
    if isinstance(value, str):
        if _CONTROL.search(value):
            raise bad_request(f"the server cannot search for a string with control characters: {value!r}")
        if value[:1] == "'" or value[-1:] == "'":
            raise bad_request(f"the server cannot search for a string that starts or ends with a quote ': {value!r}")
    return value


def _decode(literal: str) -> str:
    quote = literal[0]
    return re.sub(
        rf"\\(.)|{quote}{quote}",
        lambda found: quote if found[1] is None else _DECODED.get(found[1], found[1]),
        literal[1:-1],
        flags=re.DOTALL,
    )


def _joined(operator: str, operands: tuple[Filter, ...]) -> Filter:
    return operands[0] if len(operands) == 1 else Junction(operator, operands, _depth_over(operands))


def _depth_over(operands: tuple[Filter, ...]) -> int:
    return 1 + max(operand.depth for operand in operands)


class _TreeBuilder:
    """Builds the tree bottom-up. Refuses a tree when it becomes too deep."""

    def any_of(self, parts: list[Any]) -> Filter:
        return _bounded(_joined("OR", tuple(parts[::2])))

    def all_of(self, parts: list[Any]) -> Filter:
        return _bounded(_joined("AND", tuple(parts[::2])))

    def negation(self, parts: list[Any]) -> Filter:
        operand: Filter = parts[-1]
        return _bounded(Negation(operand, 1 + operand.depth))

    def comparison(self, parts: list[Any]) -> Filter:
        name, operator, value = parts
        return Condition(name, "!=" if operator == "<>" else operator.upper(), (value,))

    def not_starts_with(self, parts: list[Any]) -> Filter:
        return Condition(parts[0], "NOT STARTS_WITH", (parts[-1],))

    def membership(self, parts: list[Any]) -> Filter:
        name, negation, _, *values = parts
        return Condition(name, _negated(negation, "IN"), tuple(values))

    def range(self, parts: list[Any]) -> Filter:
        name, negation, _, low, _, high = parts
        return Condition(name, _negated(negation, "BETWEEN"), (low, high))

    def null(self, parts: list[Any]) -> Filter:
        return Condition(parts[0], "IS NULL" if parts[2] is None else "IS NOT NULL")

    def plain_name(self, parts: list[Any]) -> str:
        return str(parts[0])

    def quoted_name(self, parts: list[Any]) -> str:
        return str(parts[0])[1:-1]

    def text(self, parts: list[Any]) -> Value:
        return _checked(_decode(str(parts[0])))

    def number(self, parts: list[Any]) -> Value:
        return Number(str(parts[0]))

    def true(self, parts: list[Any]) -> Value:
        return True

    def false(self, parts: list[Any]) -> Value:
        return False


def _negated(negation: Any, operator: str) -> str:
    return operator if negation is None else f"NOT {operator}"


def _bounded(filter: Filter) -> Filter:
    if filter.depth > MAX_DEPTH:
        raise bad_request(f"the visibility query is nested more than {MAX_DEPTH} levels deep")
    return filter


@functools.cache
def _load_parser() -> Callable[[str], Filter]:
    """Loads lark with the first query: most processes never parse one."""
    try:
        import lark
    except ImportError as error:
        raise TemporalSettingsError('visibility queries need lark: pip install "durably[temporal]"') from error
    transformer = type("TreeBuilder", (_TreeBuilder, lark.Transformer), {})()
    parser = lark.Lark(_GRAMMAR, parser="lalr", lexer="basic", transformer=transformer, maybe_placeholders=True)

    def parse(text: str) -> Filter:
        try:
            return parser.parse(text)  # type: ignore[return-value]
        except (lark.UnexpectedCharacters, lark.UnexpectedToken) as error:
            if isinstance(error, lark.UnexpectedToken) and error.token.type == "$END":
                raise bad_request("the visibility query ends too early") from None
            position = error.pos_in_stream or 0
            if bare := _bare_value(text, position):
                start, word = bare
                raise _unexpected(text, start, f"a string is written in quotes: '{word}'") from None
            if isinstance(error, lark.UnexpectedCharacters):
                raise _unexpected(text, position, _open_text(error.char)) from None
            raise _unexpected(text, position, _unexpected_word(str(error.token))) from None

    return parse


_BARE_VALUE = re.compile(
    r"(?:[=<>]|\bIN\s*\(|\bBETWEEN|\bSTARTS_WITH)\s*(?!(?:null|not|and|or)\b)([\w.@+-][\w.:@+-]{0,99}+)(?!\s*\()",
    re.IGNORECASE,
)


def _bare_value(text: str, position: int) -> tuple[int, str] | None:
    """Position and text of a value without quotes, such as ``order-7``."""
    for found in _BARE_VALUE.finditer(text):
        if found.start(1) <= position < found.end(1):
            return found.start(1), found[1]
    return None


def _open_text(character: str) -> str:
    if character in "'\"`":
        return f"the {character} is not closed, or the string in it has control characters"
    return f"unexpected {character!r}"


def _unexpected_word(word: str) -> str:
    if word.lower() in _UNSUPPORTED:
        return f"{word.upper()} is not supported here; see https://docs.temporal.io/list-filter"
    return f"unexpected {word[:40]!r}"


def _unexpected(text: str, position: int, reason: str) -> Problem:
    return bad_request(f"the visibility query has an error at character {position + 1}: {reason}")
