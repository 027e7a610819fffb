"""Users' values as JSON: encoding, and detecting what JSON changes."""

import dataclasses
import datetime as dt
import enum
import json
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from durably.protocol.call import TooDeepError, check_nesting
from durably.protocol.limits import MAX_NESTING

_WITH_FORM_IN_JSON = (
    dt.datetime,
    dt.date,
    dt.time,
    dt.timedelta,
    Decimal,
    uuid.UUID,
    enum.Enum,
    bytes,
    bytearray,
    memoryview,
)
"""Types with a usual form in JSON (a string or a number) that can be decoded again."""


_IDENTITY: Any = object.__eq__
"""The comparison of classes without their own ``__eq__``."""
_MAX_DEPTH = 32
"""The depth to which a value is searched for its error."""


class Change(NamedTuple):
    """The change that JSON makes to one part of a value.

    ``path`` is like ``$.items[2]``. ``is_loss``: the part cannot be restored from its JSON.
    """

    path: str
    found: str
    stored: str
    is_loss: bool


def encode_json(value: Any) -> bytes:
    """Encode a value. Raises ``ValueError`` with the reason and its position."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = error
    try:
        # Subclasses of str, int and float (Django's SafeString, numpy's float64), None and bool as keys, surrogates.
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise ValueError(str(reason)) from None


def encode_checked(value: Any) -> tuple[bytes, Any, Change | None]:
    """JSON of a value, the value decoded from it, and a part whose form changed.

    The last is ``None`` if no part changed its form. Raises ``ValueError`` with the reason and its position if the
    value has no JSON or cannot be restored from it.
    """
    try:
        data = encode_json(value)
        check_nesting(data, MAX_NESTING)
        returned = msgspec.json.decode(data)
        change = None if is_same(value, returned) else worst_change(value, returned)
    except TooDeepError as error:
        raise ValueError(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ValueError(f"an unpaired surrogate in the string at `{failing_path(value)}`") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{error} - at `{failing_path(value)}`") from None
    if change is not None and change.is_loss:
        raise ValueError(describe_loss(change))
    return data, returned, change


def describe_loss(change: Change) -> str:
    return f"{change.found} at `{change.path}`, which would come back as {change.stored}"


def failing_path(value: Any, *, enc_hook: Callable[[Any], Any] | None = None) -> str:
    """The path of the innermost part that has no JSON, such as ``$.items[2]``."""
    path, depth = "$", 0
    while depth < _MAX_DEPTH:
        for place, part in _parts(value):
            try:
                msgspec.json.decode(msgspec.json.encode(part, enc_hook=enc_hook))
            except (TypeError, ValueError, OverflowError, RecursionError):
                path, value, depth = path + place, part, depth + 1
                break
        else:
            break
    return path


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f".{key}" if isinstance(key, str) else f"[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif (names := field_names(value)) is not None:
        yield from (
            (f".{name}", getattr(value, name)) for name in dict.fromkeys(names.values()) if hasattr(value, name)
        )


def is_same(value: Any, returned: Any) -> bool:
    """Whether the values are equal, by their own ``==``.

    Times are compared in UTC, because Python treats the repeated hour of a time zone as unequal to that of another.
    """
    try:
        if isinstance(value, dt.datetime) and isinstance(returned, dt.datetime) and value.tzinfo and returned.tzinfo:
            return value.astimezone(dt.UTC) == returned.astimezone(dt.UTC)
        if isinstance(value, dt.time) and isinstance(returned, dt.time):
            # Python treats a time of a zone, whose offset depends on the date, as equal to one without a zone.
            return value == returned and (value.tzinfo is None) is (returned.tzinfo is None)
        return bool(returned == value)
    except Exception:  # a user's __eq__ may raise anything; numpy's truth value is ambiguous
        return False


def worst_change(value: Any, returned: Any) -> Change | None:
    """The first loss, else the first change, else ``None``. Raises ``RecursionError`` for endless values."""
    first = None
    for change in find_changes(value, returned):
        if change.is_loss:
            return change
        first = first or change
    return first


def find_changes(value: Any, returned: Any, path: str = "$") -> Iterator[Change]:
    """The parts of ``value`` that differ in ``returned``, which was decoded from the JSON of ``value``."""
    kind = type(value)
    if isinstance(value, float) and not math.isfinite(value):
        yield Change(path, str(value), "null", True)
    elif isinstance(value, Mapping) and isinstance(returned, Mapping):
        for key, item in value.items():
            place = f"{path}.{key}" if isinstance(key, str) else f"{path}[{key!r}]"
            if key in returned:
                yield from find_changes(item, returned[key], place)
            elif len(value) != len(returned):
                yield Change(place, describe(item), "nothing: two keys are the same string", True)
            else:
                yield Change(place, f"a key of type {type(key).__name__}", "text", False)
    elif isinstance(value, Mapping) and (names := field_names(returned)) is not None:
        for key, item in value.items():
            if key not in names:
                found = f"nothing: {type(returned).__name__} has no such field"
                yield Change(f"{path}.{key}", describe(item), found, True)
            elif hasattr(returned, names[key]):
                yield from find_changes(item, getattr(returned, names[key]), f"{path}.{key}")
    elif isinstance(value, list | tuple) and isinstance(returned, list | tuple) and len(value) == len(returned):
        if isinstance(value, tuple) and not isinstance(returned, tuple):
            yield Change(path, f"a {kind.__name__}", "a list", False)
        for index, (item, stored) in enumerate(zip(value, returned, strict=True)):
            yield from find_changes(item, stored, f"{path}[{index}]")
    elif (names := field_names(value)) is not None and (isinstance(returned, Mapping) or kind is type(returned)):
        if isinstance(returned, Mapping):
            yield Change(path, describe(value), "a dict", False)
        for stored_name, name in names.items():
            if isinstance(returned, Mapping):
                if stored_name in returned and hasattr(value, name):
                    yield from find_changes(getattr(value, name), returned[stored_name], f"{path}.{name}")
            elif hasattr(value, name) and hasattr(returned, name):
                yield from find_changes(getattr(value, name), getattr(returned, name), f"{path}.{name}")
    elif is_same(value, returned) or isinstance(value, str):  # A string may have been converted to the type.
        return
    elif kind is not type(returned):
        yield Change(path, describe(value), describe(returned), not isinstance(value, _WITH_FORM_IN_JSON))
    elif kind.__eq__ is not _IDENTITY:
        yield Change(path, describe(value), f"another {kind.__name__}", True)


def field_names(value: Any) -> dict[str, str] | None:
    """The attributes of an object with declared fields, by their names in JSON.

    ``None`` for any other object.
    """
    cls = type(value)
    if isinstance(value, msgspec.Struct):
        return {field.encode_name: field.name for field in msgspec.structs.fields(cls)}
    if dataclasses.is_dataclass(cls):
        return {field.name: field.name for field in dataclasses.fields(cls)}
    if (attributes := getattr(cls, "__attrs_attrs__", None)) is not None:
        return {attribute.name: attribute.name for attribute in attributes}
    if (fields := getattr(cls, "__pydantic_fields__", None)) is not None:
        return {
            alias: name
            for name, field in fields.items()
            for alias in (name, field.alias, field.serialization_alias)
            if alias
        }
    return None


def describe(value: Any) -> str:
    """The type of a value, for messages."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
