"""Compiles an expression tree into a Python closure.

Every node becomes a small closure over the closures of its parts, so that an evaluation is a few calls and only reads
data. The most common forms (a path of fields, its comparison with a literal) have closures of their own. Names,
functions and literals are checked once, at compile time.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .functions import (
    FUNCTIONS,
    INT_MAX,
    TYPES,
    UNKNOWN,
    CelFunction,
    Frame,
    Path,
    add,
    compile_pattern,
    contains,
    divide,
    equal,
    greater,
    greater_or_equal,
    is_truthy,
    less,
    less_or_equal,
    multiply,
    negate,
    not_equal,
    read_field,
    remainder,
    subtract,
)
from .syntax import (
    MAX_DEPTH,
    Binary,
    Call,
    Chain,
    Conditional,
    ExpressionSyntaxError,
    Field,
    Index,
    ListOf,
    Literal,
    MapOf,
    Name,
    Node,
    Position,
    Unary,
)

Evaluate = Callable[[Frame], Any]

ROOTS: dict[str, Evaluate] = {
    "event": operator.attrgetter("event"),
    "async": operator.attrgetter("later"),
}
_BINARY: dict[str, Callable[[Frame, Any, Any], Any]] = {
    "==": equal,
    "!=": not_equal,
    "<": less,
    "<=": less_or_equal,
    ">": greater,
    ">=": greater_or_equal,
    "in": contains,
    "-": subtract,
    "*": multiply,
    "/": divide,
    "%": remainder,
}


def split_path(node: Node) -> tuple[str, Path] | None:
    """The root's name and the keys below it, if the node is a path.

    A path has constant keys: ``event.data["a"][0]``.
    """
    keys: list[str | int] = []
    while not isinstance(node, Name):
        match node:
            case Field(operand=operand, name=name):
                keys.append(name)
            case Index(operand=operand, key=Literal(value=str() | int() as key)) if not isinstance(key, bool):
                keys.append(key)
            case _:
                return None
        node = operand
    return node.name, tuple(reversed(keys))


class Compiler:
    """Compiles one expression.

    - ``variables``: The number of slots that its macros need in a frame.
    - ``event_fields``: The fields of events that it reads, like ``{"data": "event"}``, each with the last name of the
      event.
    - ``is_constant``: It reads no event.
    - ``has_async``: If false, ``async`` is rejected, because it would always be unknown.
    - ``has_output``: The expression may name a run's ``output`` instead of a later event.
    """

    def __init__(self, has_async: bool, has_output: bool = False) -> None:
        self.variables = 0
        self.event_fields: dict[str, str] = {}
        self._has_async = has_async
        self._has_output = has_output
        self._scope: dict[str, int] = {}
        self._depth = 0
        self.is_constant = True

    def compile(self, node: Node) -> Evaluate:
        """Compile a tree. Raises ``ExpressionSyntaxError``, also for a tree that is nested too deeply."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionSyntaxError(f"it is nested more than {MAX_DEPTH} levels deep")
        evaluate = self._compile(node)
        self._depth -= 1
        return evaluate

    def _compile(self, node: Node) -> Evaluate:
        match node:
            case Literal(value=value):
                return _compile_literal(value)
            case Name():
                return self._compile_name(node)
            case Field():
                return self._compile_fields(node)
            case Index():
                return self._compile_index(node)
            case Chain():
                return _CHAINS[node.operator](tuple(map(self.compile, node.terms)))
            case Binary():
                return self._compile_binary(node)
            case Unary():
                operand = self.compile(node.operand)
                return _compile_not(operand) if node.operator == "!" else lambda frame: negate(operand(frame))
            case Conditional():
                condition, then, otherwise = map(self.compile, (node.condition, node.then, node.otherwise))
                return lambda frame: then(frame) if is_truthy(condition(frame)) else otherwise(frame)
            case Call():
                return self._compile_call(node)
            case ListOf():
                items = tuple(map(self.compile, node.items))
                return lambda frame: [_or_null(item(frame)) for item in items]
            case MapOf():
                return _compile_map([(self.compile(key), self.compile(value)) for key, value in node.entries])

    def _compile_name(self, node: Name) -> Evaluate:
        if node.name in self._scope:
            slot = self._scope[node.name]
            return lambda frame: frame.variables[slot]
        if node.name == "output" and self._has_output:
            self.is_constant = False
            return ROOTS["async"]
        if node.name in ROOTS:
            if node.name == "async" and not self._has_async:
                known = "over `event` and `output`" if self._has_output else "over `event` alone"
                raise ExpressionSyntaxError(f"`async` is not known here; this expression is {known}", node.position)
            self.is_constant = False
            return ROOTS[node.name]
        if node.name in TYPES:
            type_of = TYPES[node.name]
            return lambda frame: type_of
        other = "output" if self._has_output else "async"
        raise ExpressionSyntaxError(
            f"unknown name {node.name!r}; an expression knows `event` and `{other}`", node.position
        )

    def _compile_fields(self, node: Field) -> Evaluate:
        names: list[str] = []
        operand: Node = node
        while isinstance(operand, Field):
            names.append(operand.name)
            operand = operand.operand
        if len(names) > MAX_DEPTH:
            raise ExpressionSyntaxError(f"it is nested more than {MAX_DEPTH} levels deep")
        self._note_field(operand, names[-1])
        return _compile_fields(self.compile(operand), tuple(reversed(names)))

    def _note_field(self, operand: Node, field: object) -> None:
        if isinstance(operand, Name) and operand.name in ROOTS and operand.name not in self._scope:
            self.event_fields[str(field)] = operand.name

    def _compile_index(self, node: Index) -> Evaluate:
        if isinstance(node.key, Literal):
            self._note_field(node.operand, node.key.value)
        container, key = self.compile(node.operand), self.compile(node.key)
        return lambda frame: read_field(container(frame), key(frame))

    def _compile_binary(self, node: Binary) -> Evaluate:
        left, right = node.left, node.right
        if isinstance(left, Literal) and node.operator in ("==", "!="):
            left, right = right, left
        evaluate = self.compile(left)
        # A string equals only itself in Python too, where 1 equals True.
        if isinstance(right, Literal) and isinstance(right.value, str):
            text = right.value
            if node.operator == "==":
                return lambda frame: evaluate(frame) == text
            if node.operator == "!=":
                return lambda frame: evaluate(frame) != text
        operation, other = _BINARY[node.operator], self.compile(right)
        return lambda frame: operation(frame, evaluate(frame), other(frame))

    def _compile_call(self, node: Call) -> Evaluate:
        if node.name == "has" and node.target is None:
            return self._compile_has(node)
        if node.target is not None and node.name in _MACROS:
            return self._compile_macro(node)
        function = _find_function(node)
        nodes = node.arguments if node.target is None else (node.target, *node.arguments)
        if node.name == "matches" and isinstance(nodes[1], Literal) and isinstance(nodes[1].value, str):
            _check_pattern(nodes[1].value, node.position)
        return _compile_function(function, tuple(map(self.compile, nodes)))

    def _compile_has(self, node: Call) -> Evaluate:
        """Whether a field exists, null included.

        The result is true or false, never unknown, so that ``!has(…)`` works.
        """
        if len(node.arguments) != 1 or not isinstance(node.arguments[0], Field):
            raise ExpressionSyntaxError("has() takes one field, like has(event.data.id)", node.position)
        field = self.compile(node.arguments[0])
        return lambda frame: field(frame) is not UNKNOWN

    def _compile_macro(self, node: Call) -> Evaluate:
        assert node.target is not None
        arities, compile_loop = _MACROS[node.name]
        if len(node.arguments) not in arities or not isinstance(node.arguments[0], Name):
            example = f"{node.name}(x, {'x.id' if node.name == 'map' else 'x > 1'})"
            raise ExpressionSyntaxError(
                f"{node.name}() takes a variable and an expression, like {example}", node.position
            )
        items = self.compile(node.target)
        variable = node.arguments[0].name
        hidden = self._scope.get(variable)
        slot = self._scope[variable] = self.variables
        self.variables += 1
        bodies = tuple(map(self.compile, node.arguments[1:]))
        del self._scope[variable]
        if hidden is not None:
            self._scope[variable] = hidden
        return _compile_over(items, compile_loop(slot, *bodies))


def _compile_literal(value: Any) -> Evaluate:
    if type(value) is int and value > INT_MAX:
        raise ExpressionSyntaxError(f"the integer {value} does not fit in 64 bits")
    return lambda frame: value


def _or_null(value: Any) -> Any:
    """The value in a list or a map, with null for a missing value."""
    return None if value is UNKNOWN else value


def _compile_fields(operand: Evaluate, names: tuple[str, ...]) -> Evaluate:
    if len(names) == 2:
        first, second = names

        def read_two(frame: Frame) -> Any:
            value = operand(frame)
            value = value.get(first, UNKNOWN) if type(value) is dict else read_field(value, first)
            return value.get(second, UNKNOWN) if type(value) is dict else read_field(value, second)

        return read_two

    def read(frame: Frame) -> Any:
        value = operand(frame)
        for name in names:
            value = value.get(name, UNKNOWN) if type(value) is dict else read_field(value, name)
        return value

    return read


def _compile_any(terms: tuple[Evaluate, ...]) -> Evaluate:
    *others, last = terms

    def first_truthy(frame: Frame) -> Any:
        for term in others:
            value = term(frame)
            if value is True or (value is not False and is_truthy(value)):
                return value
        return last(frame)

    return first_truthy


def _compile_all(terms: tuple[Evaluate, ...]) -> Evaluate:
    *others, last = terms

    def first_falsy(frame: Frame) -> Any:
        for term in others:
            value = term(frame)
            if value is not True and (value is False or not is_truthy(value)):
                return value
        return last(frame)

    return first_falsy


def _compile_sum(terms: tuple[Evaluate, ...]) -> Evaluate:
    first, *others = terms

    def total(frame: Frame) -> Any:
        value = first(frame)
        for term in others:
            value = add(frame, value, term(frame))
        return value

    return total


_CHAINS: dict[str, Callable[[tuple[Evaluate, ...]], Evaluate]] = {
    "||": _compile_any,
    "&&": _compile_all,
    "+": _compile_sum,
}


def _compile_not(operand: Evaluate) -> Evaluate:
    def negated(frame: Frame) -> Any:
        value = operand(frame)
        if value is UNKNOWN:
            return False  # as the server does: a missing field is neither true nor false
        return not value if isinstance(value, bool) else UNKNOWN

    return negated


def _compile_map(entries: list[tuple[Evaluate, Evaluate]]) -> Evaluate:
    def build(frame: Frame) -> Any:
        built = {}
        for key, value in entries:
            name = key(frame)
            if isinstance(name, bool) or not isinstance(name, str | int):
                return UNKNOWN
            built[name] = _or_null(value(frame))
        return built

    return build


def _find_function(node: Call) -> CelFunction:
    function = FUNCTIONS.get(node.name)
    if function is None:
        raise ExpressionSyntaxError(f"there is no function {node.name!r}", node.position)
    count = len(node.arguments) + (node.target is not None)
    if not (function.is_global if node.target is None else function.is_method):
        form = f"x.{node.name}(…)" if function.is_method else f"{node.name}(x)"
        raise ExpressionSyntaxError(f"{node.name!r} is called like {form}", node.position)
    if count not in function.arities:
        wanted = " or ".join(str(arity - (node.target is not None)) for arity in function.arities)
        raise ExpressionSyntaxError(f"{node.name}() takes {wanted} arguments, not {len(node.arguments)}", node.position)
    return function


def _check_pattern(pattern: str, position: Position) -> None:
    try:
        compile_pattern(pattern)
    except ValueError as error:
        raise ExpressionSyntaxError(
            f"the pattern {pattern[:80]!r} is not an RE2 expression: {error}", position
        ) from None


def _compile_function(function: CelFunction, arguments: tuple[Evaluate, ...]) -> Evaluate:
    implementation, when_unknown = function.implementation, function.when_unknown
    if len(arguments) == 1:
        only = arguments[0]

        def call_with_one(frame: Frame) -> Any:
            value = only(frame)
            return when_unknown if value is UNKNOWN else implementation(frame, value)

        return call_with_one

    def call(frame: Frame) -> Any:
        values = [argument(frame) for argument in arguments]
        return when_unknown if UNKNOWN in values else implementation(frame, *values)

    return call


# Macros: loops over the elements of a list or the keys of a map.

_Loop = Callable[[Frame, Any], Any]


def _compile_over(items: Evaluate, loop: _Loop) -> Evaluate:
    def evaluate(frame: Frame) -> Any:
        elements = items(frame)
        if not isinstance(elements, list | tuple | Mapping):
            return UNKNOWN
        frame.spend(len(elements))
        return loop(frame, elements)

    return evaluate


def _each(slot: int, frame: Frame, elements: Any) -> Any:
    for element in elements:
        frame.variables[slot] = element
        yield element


def _compile_mapping(slot: int, *bodies: Evaluate) -> _Loop:
    *conditions, result = bodies
    return lambda frame, elements: [
        _or_null(result(frame))
        for _ in _each(slot, frame, elements)
        if all(is_truthy(condition(frame)) for condition in conditions)
    ]


def _compile_quantifier(combine: Callable[[Iterator[bool]], bool]) -> Callable[[int, Evaluate], _Loop]:
    def compile_loop(slot: int, condition: Evaluate) -> _Loop:
        return lambda frame, elements: combine(is_truthy(condition(frame)) for _ in _each(slot, frame, elements))

    return compile_loop


def _compile_filter(slot: int, condition: Evaluate) -> _Loop:
    return lambda frame, elements: [item for item in _each(slot, frame, elements) if is_truthy(condition(frame))]


_MACROS: dict[str, tuple[tuple[int, ...], Callable[..., _Loop]]] = {
    "exists": ((2,), _compile_quantifier(any)),
    "all": ((2,), _compile_quantifier(all)),
    "exists_one": ((2,), _compile_quantifier(lambda found: sum(found) == 1)),
    "existsOne": ((2,), _compile_quantifier(lambda found: sum(found) == 1)),
    "filter": ((2,), _compile_filter),
    "map": ((2, 3), _compile_mapping),
}
