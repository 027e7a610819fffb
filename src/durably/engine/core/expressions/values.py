"""Values in the protocol's dialect of CEL: equality, order, arithmetic and truth.

Plain CEL stops with an error if types differ or a field is missing; the dialect continues. ``UNKNOWN`` stands for a
missing field, and for an operation without a result (a division by zero, an order of a string and a number). Comments
say "as the server does" for rules of the public server that are not obvious. Values are those of JSON, plus ``bytes``,
``datetime`` (a timestamp) and ``timedelta``. Fuel bounds the work on large values.
"""

import datetime as dt
import hashlib
import math
import operator
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
MAX_TEXT: Final = 1024 * 1024
"""Maximum characters or elements of a concatenation. The result of a longer one is unknown."""
FUEL: Final = 200_000
"""Maximum elements that one evaluation may visit in macros and in compared or searched lists: about 0.1 s of work."""
_LONGEST_KEY_TEXT: Final = 64


class Unknown(Enum):
    """The type of ``UNKNOWN``: an enum, so that type checkers can narrow by identity."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN

_ORDERED = (str, bool, bytes, dt.datetime, dt.timedelta)
_SCALARS = frozenset((str, bool, int, float, bytes, dt.datetime, dt.timedelta, type(None)))

Path = tuple[str | int, ...]
"""The path of a value below ``event`` or ``async``: field names and list indexes."""


class FuelExhaustedError(Exception):
    """An evaluation visited more elements than ``FUEL`` allows."""


class Frame:
    """The state of one evaluation.

    It has the two documents, the time in milliseconds, the variables of macros, and the fuel left.
    """

    __slots__ = ("event", "fuel", "later", "now", "variables")

    def __init__(self, event: object, later: object, now: int, variables: int) -> None:
        self.event = event
        self.later = later
        self.now = now
        self.variables: list[Any] = [UNKNOWN] * variables
        self.fuel = FUEL

    def spend(self, elements: int) -> None:
        self.fuel -= elements
        if self.fuel < 0:
            raise FuelExhaustedError

    def time(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.now / 1000, dt.UTC)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_truthy(value: object) -> bool:
    """Truth as in JavaScript, for ``||``, ``&&`` and ``?:``.

    An empty list is true, an empty string is not.
    """
    if value is True or value is False:
        return value
    if value is None or value is UNKNOWN:
        return False
    if isinstance(value, str | int | float):
        return bool(value)
    return True


def read_field(value: object, key: object) -> Any:
    """``value[key]`` and ``value.key``; ``UNKNOWN`` if there is none."""
    if type(value) is dict and type(key) is str:
        return value.get(key, UNKNOWN)
    if isinstance(value, Mapping):
        return value.get(key, UNKNOWN) if isinstance(key, str | int) and not isinstance(key, bool) else UNKNOWN
    if isinstance(value, list | tuple):
        if isinstance(key, float) and key.is_integer():
            key = int(key)
        if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(value):
            return value[key]
    return UNKNOWN


def read_path(value: object, path: Path) -> Any:
    for key in path:
        value = read_field(value, key)
    return value


def equal(frame: Frame, left: object, right: object) -> bool:
    """The operator ``==``.

    Null equals only null and a missing field; two missing fields are not equal.
    """
    if left is UNKNOWN:
        return right is None
    if right is UNKNOWN:
        return left is None
    if type(left) is type(right) and type(left) in _SCALARS:
        return left == right
    return _equal_across_types(frame, left, right)


def _equal_across_types(frame: Frame, left: object, right: object) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        frame.spend(len(left) + 1)
        return left.keys() == right.keys() and all(equal(frame, value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        frame.spend(len(left) + 1)
        return len(left) == len(right) and all(equal(frame, a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def not_equal(frame: Frame, left: object, right: object) -> bool:
    return not equal(frame, left, right) if left is not UNKNOWN or right is not UNKNOWN else True


def contains(frame: Frame, item: object, container: object) -> Any:
    """The operator ``item in container``: an element of a list, or a key of a map.

    False if either is missing.
    """
    if item is UNKNOWN or container is UNKNOWN:
        return False
    if isinstance(container, Mapping):
        return read_field(container, item) is not UNKNOWN
    if isinstance(container, list | tuple):
        frame.spend(len(container))
        return any(equal(frame, item, element) for element in container)
    return UNKNOWN


def _order(compare: Callable[[Any, Any], bool], unknown_left: bool) -> Callable[[Frame, Any, Any], Any]:
    """An ordering operator.

    As on the server, a missing field sorts first, and null counts as the zero of the other operand's type.
    """

    def ordered(frame: Frame, left: Any, right: Any) -> Any:
        if left is UNKNOWN:
            return unknown_left
        if right is UNKNOWN:
            return not unknown_left
        if left is None:
            left = _zero_of(right)
        elif right is None:
            right = _zero_of(left)
        if is_number(left) and is_number(right):
            return compare(left, right)
        if type(left) is type(right) and isinstance(left, _ORDERED):
            return compare(left, right)
        return UNKNOWN

    return ordered


def _zero_of(value: object) -> object:
    if isinstance(value, str):
        return ""
    return 0 if is_number(value) else None


less = _order(operator.lt, unknown_left=True)
less_or_equal = _order(operator.le, unknown_left=True)
greater = _order(operator.gt, unknown_left=False)
greater_or_equal = _order(operator.ge, unknown_left=False)


def add(frame: Frame, left: Any, right: Any) -> Any:
    """The operator ``+``.

    Missing and null operands are ignored. Operands of different types are concatenated as strings.
    """
    if left is UNKNOWN or left is None:
        return right
    if right is UNKNOWN or right is None:
        return left
    if is_number(left) and is_number(right):
        return _calculate(operator.add, left, right)
    if isinstance(left, str) and isinstance(right, str):
        return _join(frame, left, right)
    if isinstance(left, bytes) and isinstance(right, bytes):
        return _join(frame, left, right)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        frame.spend(len(left) + len(right))
        return _join(frame, [*left], [*right])
    if _are_times(left, right):
        return _calculate(operator.add, left, right)
    if type(left) is type(right):
        return UNKNOWN
    for value in (left, right):
        if isinstance(value, list | tuple | Mapping):
            frame.spend(len(value))
    left_text, right_text = to_text(left), to_text(right)
    return _join(frame, left_text, right_text) if left_text is not None and right_text is not None else UNKNOWN


def _join(frame: Frame, left: Any, right: Any) -> Any:
    frame.spend((len(left) + len(right)) >> 8)
    return left + right if len(left) + len(right) <= MAX_TEXT else UNKNOWN


def _are_times(left: object, right: object) -> bool:
    return isinstance(left, dt.datetime | dt.timedelta) and isinstance(right, dt.datetime | dt.timedelta)


def subtract(frame: Frame, left: Any, right: Any) -> Any:
    if (is_number(left) and is_number(right)) or _are_times(left, right):
        return _calculate(operator.sub, left, right)
    return UNKNOWN


def multiply(frame: Frame, left: Any, right: Any) -> Any:
    return _calculate(operator.mul, left, right) if is_number(left) and is_number(right) else UNKNOWN


def divide(frame: Frame, left: Any, right: Any) -> Any:
    """The operator ``/``.

    Ints truncate towards zero and have no quotient by zero; doubles give infinities, as IEEE 754 does.
    """
    if not (is_number(left) and is_number(right)):
        return UNKNOWN
    if isinstance(left, int) and isinstance(right, int):
        return _calculate(_quotient, left, right)
    return _calculate(_divide_doubles, left, right)


def remainder(frame: Frame, left: Any, right: Any) -> Any:
    """The operator ``%``, for whole numbers only: a JSON number like ``4.0`` is one.

    The sign is the dividend's.
    """
    if not (is_number(left) and is_number(right)) or left % 1 or right % 1:
        return UNKNOWN
    return _calculate(lambda a, b: int(a) - int(b) * _quotient(int(a), int(b)), left, right)


def negate(value: Any) -> Any:
    if is_number(value) or isinstance(value, dt.timedelta):
        return _calculate(operator.mul, value, -1)
    return UNKNOWN


def _quotient(left: int, right: int) -> int:
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def _divide_doubles(left: float, right: float) -> float:
    if right:
        return left / right
    return math.nan if not left or math.isnan(left) else math.copysign(math.inf, left) * math.copysign(1, right)


def _calculate(operation: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    try:
        result = operation(left, right)
    except (ArithmeticError, TypeError, ValueError):
        return UNKNOWN
    if isinstance(result, int) and not INT_MIN <= result <= INT_MAX:
        return UNKNOWN
    return result


def to_text(value: object) -> str | None:
    """A value's string for ``+`` and ``string()``; ``None`` if there is none.

    It is the server's form. A whole number has no decimal point, whether JSON wrote it ``5`` or ``5.0``.
    """
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value) if INT_MIN <= value <= 2**64 else None
        case float():
            return str(int(value)) if value.is_integer() and abs(value) < 1e21 else _double_to_text(value)
        case bytes():
            return value.decode("utf-8", "replace")
        case dt.datetime():
            return value.isoformat().replace("+00:00", "Z")
        case dt.timedelta():
            return f"{to_text(value.total_seconds())}s"
        case list() | tuple():
            return f"[{' '.join(map(_element_to_text, value))}]"
        case Mapping():
            return f"map[{' '.join(sorted(f'{key}:{_element_to_text(item)}' for key, item in value.items()))}]"
    return None


def _double_to_text(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _element_to_text(value: object) -> str:
    return to_text(value) or ("" if isinstance(value, str) else "<nil>")


def to_index_key(value: object) -> str:
    """A short string that values share if they are equal in the dialect.

    Different values almost never share one. A missing field has null's key. All lists share one key, and so do all
    maps: evaluate the expression after a lookup.
    """
    if value is None or value is UNKNOWN:
        return "null"
    if isinstance(value, str):
        if len(value) <= _LONGEST_KEY_TEXT:
            return f"text:{value}"
        return f"hash:{hashlib.sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        try:
            return f"number:{float(value) + 0.0!r}"  # adding zero turns -0.0, which equals it, into 0.0
        except OverflowError:
            return "number:large"
    return "composite"
