"""The functions of expressions: CEL's own, and those that the dialect adds.

The dialect is the protocol's. A table maps names to implementations. Each takes the evaluation's frame and its
arguments, none of them ``UNKNOWN``, and returns ``UNKNOWN`` for arguments that it cannot use. They only raise
``FuelExhaustedError``.
"""

import base64
import binascii
import datetime as dt
import email.utils
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import re2

from durably.protocol.durations import DurationInvalidError, parse_duration, parse_rfc3339

from .values import INT_MAX, INT_MIN, UNKNOWN, Frame, is_number, to_text

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
