"""Values and functions of expressions, in the protocol's dialect of CEL.

Plain CEL stops with an error if types differ or a field is missing; the dialect continues. ``UNKNOWN`` stands for a
missing field, and for an operation without a result (a division by zero, an order of a string and a number). Comments
say "as the server does" for rules of the public server that are not obvious. Values are those of JSON, plus ``bytes``,
``datetime`` (a timestamp) and ``timedelta``. Fuel bounds the work on large values.

A table maps names to functions. Each takes the evaluation's frame and its arguments, none of them ``UNKNOWN``, returns
``UNKNOWN`` for arguments that it cannot use, and raises nothing but ``FuelExhaustedError``.
"""

import base64
import binascii
import datetime as dt
import email.utils
import functools
import hashlib
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec
import re2

from durably.protocol.durations import DurationInvalidError, parse_duration, parse_rfc3339

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


_MAX_PATTERN = 1000
_MAX_WORD = 100
"""Maximum number of characters from which a number, a date or a duration is read."""
_EARLIEST_DATE_SECONDS = 946_684_800
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,20}", re.ASCII)
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "t": True, "1": True} | {
    "false": False,
    "False": False,
    "FALSE": False,
    "f": False,
    "0": False,
}

Implementation = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class CelFunction:
    """A function of expressions, and the forms in which it is called.

    ``arities`` counts the target of a method as an argument, as CEL does. ``when_unknown`` is the result if an argument
    is missing: as on the server, false for a predicate, unknown for a value.
    """

    implementation: Implementation
    arities: tuple[int, ...]
    is_global: bool
    is_method: bool
    when_unknown: Any


FUNCTIONS: dict[str, CelFunction] = {}


def _function(
    name: str, *arities: int, form: str = "global", when_unknown: Any = UNKNOWN
) -> Callable[[Implementation], Implementation]:
    def register(implementation: Implementation) -> Implementation:
        FUNCTIONS[name] = CelFunction(implementation, arities, form != "method", form != "global", when_unknown)
        return implementation

    return register


@_function("size", 1, form="both", when_unknown=0)
def _size(frame: Frame, value: Any) -> Any:
    return len(value) if isinstance(value, str | bytes | list | tuple | Mapping) else 0 if value is None else UNKNOWN


def _text_question(name: str, options: Callable[[str, str], bool]) -> None:
    @_function(name, 2, form="method", when_unknown=False)
    def implementation(frame: Frame, text: Any, part: Any) -> Any:
        if not (isinstance(text, str) and isinstance(part, str)):
            return UNKNOWN
        frame.spend(len(text) >> 8)
        return options(text, part)


_text_question("contains", str.__contains__)
_text_question("startsWith", str.startswith)
_text_question("endsWith", str.endswith)


@_function("matches", 2, form="both", when_unknown=False)
def _matches(frame: Frame, text: Any, pattern: Any) -> Any:
    """Whether RE2 finds the pattern in the string.

    Its fuel, like its time, grows with the string's length times the pattern's size.
    """
    if not (isinstance(text, str) and isinstance(pattern, str)):
        return UNKNOWN
    try:
        compiled = compile_pattern(pattern)
        frame.spend(1 + (len(text) * compiled.programsize >> 7))
        return compiled.search(text) is not None
    except (ValueError, UnicodeEncodeError):
        return UNKNOWN


@functools.lru_cache(maxsize=128)
def compile_pattern(pattern: str) -> Any:
    """Compile a pattern. Raises ``ValueError`` with the reason."""
    if len(pattern) > _MAX_PATTERN:
        raise ValueError(f"a pattern has at most {_MAX_PATTERN} characters")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        raise ValueError(reason.decode() if isinstance(reason, bytes) else str(reason)) from None


def _text_conversion(names: tuple[str, ...], form: str, convert: Callable[[str], Any]) -> None:
    for name in names:

        @_function(name, 1, form=form)
        def implementation(frame: Frame, text: Any) -> Any:
            if not isinstance(text, str):
                return UNKNOWN
            frame.spend(len(text) >> 8)
            return convert(text)


def _decode_base64(text: str) -> Any:
    try:
        return base64.b64decode(text, validate=True).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return UNKNOWN


def _decode_json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return UNKNOWN


_ASCII_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}
_ASCII_UPPER = {code: code - 32 for code in range(ord("a"), ord("z") + 1)}

_text_conversion(("lowercase",), "global", str.lower)
_text_conversion(("uppercase",), "global", str.upper)
_text_conversion(("lowerAscii",), "method", lambda text: text.translate(_ASCII_LOWER))
_text_conversion(("upperAscii",), "method", lambda text: text.translate(_ASCII_UPPER))
_text_conversion(("trim",), "method", str.strip)
_text_conversion(("b64decode",), "global", _decode_base64)
_text_conversion(("json_parse",), "global", _decode_json)


# Conversions between types.


@_function("int", 1)
def _int(frame: Frame, value: Any) -> Any:
    match value:
        case bool():
            return UNKNOWN
        case str() if _INTEGER.fullmatch(value):
            value = int(value)
        case float() if abs(value) < 2.0**63:
            value = int(value)
        case dt.datetime():
            value = int(value.timestamp())
    return value if isinstance(value, int) and INT_MIN <= value <= INT_MAX else UNKNOWN


@_function("uint", 1)
def _uint(frame: Frame, value: Any) -> Any:
    number = _int(frame, value)
    return number if number is not UNKNOWN and number >= 0 else UNKNOWN


@_function("double", 1)
def _double(frame: Frame, value: Any) -> Any:
    if isinstance(value, str):
        return float(value) if len(value) <= _MAX_WORD and _DECIMAL.fullmatch(value) else UNKNOWN
    try:
        return float(value) if is_number(value) else UNKNOWN
    except OverflowError:
        return UNKNOWN


@_function("bool", 1)
def _bool(frame: Frame, value: Any) -> Any:
    if isinstance(value, bool):
        return value
    return _BOOLEANS.get(value, UNKNOWN) if isinstance(value, str) else UNKNOWN


@_function("string", 1)
def _string(frame: Frame, value: Any) -> Any:
    text = None if isinstance(value, list | tuple | Mapping) else to_text(value)
    return UNKNOWN if text is None else text


@_function("bytes", 1)
def _bytes(frame: Frame, value: Any) -> Any:
    if isinstance(value, str):
        frame.spend(len(value) >> 8)
        return value.encode("utf-8", "surrogatepass")
    return value if isinstance(value, bytes) else UNKNOWN


@_function("dyn", 1)
def _dyn(frame: Frame, value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class TypeOf:
    """The value of ``type()``, and of names like ``int`` that are not called."""

    name: str


TYPES = {
    name: TypeOf(name)
    for name in (
        "null_type",
        "bool",
        "int",
        "double",
        "string",
        "bytes",
        "list",
        "map",
        "timestamp",
        "duration",
        "type",
    )
} | {"uint": TypeOf("int")}
_PYTHON_TYPES: tuple[tuple[type, str], ...] = (
    (type(None), "null_type"),
    (bool, "bool"),
    (int, "int"),
    (float, "double"),
    (str, "string"),
    (bytes, "bytes"),
    (list, "list"),
    (tuple, "list"),
    (Mapping, "map"),
    (dt.datetime, "timestamp"),
    (dt.timedelta, "duration"),
    (TypeOf, "type"),
)


@_function("type", 1)
def _type(frame: Frame, value: Any) -> Any:
    for python_type, name in _PYTHON_TYPES:
        if isinstance(value, python_type):
            return TYPES[name]
    return UNKNOWN


# Time.


@_function("now", 0)
def _now(frame: Frame) -> Any:
    return frame.time()


@_function("now_plus", 1)
def _now_plus(frame: Frame, text: Any) -> Any:
    return _shift(frame.time(), _duration(frame, text), 1)


@_function("now_minus", 1)
def _now_minus(frame: Frame, text: Any) -> Any:
    return _shift(frame.time(), _duration(frame, text), -1)


def _shift(time: dt.datetime, duration: Any, sign: int) -> Any:
    try:
        return UNKNOWN if duration is UNKNOWN else time + duration * sign
    except OverflowError:
        return UNKNOWN


@_function("duration", 1)
def _duration(frame: Frame, value: Any) -> Any:
    if isinstance(value, dt.timedelta):
        return value
    if not isinstance(value, str) or len(value) > _MAX_WORD:
        return UNKNOWN
    try:
        return -parse_duration(value[1:]) if value.startswith("-") else parse_duration(value)
    except DurationInvalidError:
        return UNKNOWN


@_function("timestamp", 1)
def _timestamp(frame: Frame, value: Any) -> Any:
    """CEL's own: an RFC 3339 string, or seconds since the epoch."""
    match value:
        case dt.datetime():
            return value
        case str() if len(value) <= _MAX_WORD:
            return parse_rfc3339(value) or UNKNOWN
        case int() if not isinstance(value, bool):
            return _from_epoch(value)
    return UNKNOWN


@_function("date", 1)
def _date(frame: Frame, value: Any) -> Any:
    """The dialect's function, which also reads dates without a time and HTTP dates.

    A number is seconds, milliseconds or nanoseconds since the epoch, whichever gives a year from 2000 on.
    """
    if isinstance(value, str):
        return (parse_rfc3339(value) or _parse_mail_date(value)) if len(value) <= _MAX_WORD else UNKNOWN
    if isinstance(value, dt.datetime):
        return value
    if not is_number(value) or value % 1 or value < _EARLIEST_DATE_SECONDS:
        return UNKNOWN
    return _from_epoch(value if value < 10**10 else value / 1e3 if value < 10**13 else value / 1e9)


def _from_epoch(seconds: float) -> Any:
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return UNKNOWN


def _parse_mail_date(text: str) -> Any:
    try:
        time = email.utils.parsedate_to_datetime(text)
        return (time if time.tzinfo else time.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return UNKNOWN


def _time_part(
    name: str, of_timestamp: Callable[[dt.datetime], int], of_duration: Callable[[dt.timedelta], int] | None = None
) -> None:
    @_function(name, 1, 2, form="method")
    def implementation(frame: Frame, value: Any, zone: Any = "UTC") -> Any:
        if isinstance(value, dt.datetime) and isinstance(zone, str):
            in_zone = _move_to_zone(value, zone)
            return UNKNOWN if in_zone is None else of_timestamp(in_zone)
        if isinstance(value, dt.timedelta) and of_duration:
            return of_duration(value)
        return UNKNOWN


def _move_to_zone(time: dt.datetime, zone: str) -> dt.datetime | None:
    if offset := re.fullmatch(r"([+-]?)(\d{1,2}):(\d{2})", zone, re.ASCII):
        delta = dt.timedelta(hours=int(offset[2]), minutes=int(offset[3]))
        try:
            return time.astimezone(dt.timezone(-delta if offset[1] == "-" else delta))
        except (ValueError, OverflowError):
            return None
    try:
        return time.astimezone(ZoneInfo(zone))
    except (ValueError, OverflowError, OSError, KeyError):
        return None


_SECOND = dt.timedelta(seconds=1)

_time_part("getFullYear", lambda time: time.year)
_time_part("getMonth", lambda time: time.month - 1)
_time_part("getDayOfMonth", lambda time: time.day - 1)
_time_part("getDate", lambda time: time.day)
_time_part("getDayOfWeek", lambda time: time.isoweekday() % 7)
_time_part("getDayOfYear", lambda time: time.timetuple().tm_yday - 1)
_time_part("getHours", lambda time: time.hour, lambda length: int(length / (3600 * _SECOND)))
_time_part("getMinutes", lambda time: time.minute, lambda length: int(length / (60 * _SECOND)))
_time_part("getSeconds", lambda time: time.second, lambda length: int(length / _SECOND))
_time_part(
    "getMilliseconds",
    lambda time: time.microsecond // 1000,
    lambda length: int(length % _SECOND / dt.timedelta(milliseconds=1)),
)
