"""Checks of the types and ranges of settings, which would otherwise fail late.

``setting`` is the name in the message, such as ``Client.env``. ``error`` is the class to raise for a value of another
type.
"""

import datetime as dt
from collections.abc import Collection, Mapping

from .text import is_encodable

_ZERO = dt.timedelta(0)


def check_type(
    value: object,
    setting: str,
    kind: type | tuple[type, ...],
    article_and_kind: str,
    error: type[Exception] = TypeError,
) -> None:
    """Check a value's type.

    ``True`` is not a number, and a class is not an instance of itself. The message shows no values that may be secret.
    """
    if isinstance(value, type):  # It has the methods that a protocol requires.
        raise error(f"{setting} must be {article_and_kind}, not the class {value.__name__}")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise error(f"{setting} must be {article_and_kind}, not {_shown(value)}")


def check_text(value: object, setting: str, error: type[Exception] = TypeError) -> None:
    """Check a string, or ``None``.

    The message does not show the value, which may be a key.
    """
    if not (value is None or isinstance(value, str)):
        raise error(f"{setting} must be a string, not a value of type {type(value).__name__}")
    if value is not None and not is_encodable(value):
        raise error(f"{setting} must be a string that UTF-8 can encode: it has half of a surrogate pair")


def check_function(value: object, setting: str, error: type[Exception] = TypeError) -> None:
    """Check a function, or ``None``."""
    if not (value is None or callable(value)):
        raise error(f"{setting} must be a function, not {_shown(value)}")


def check_switch(value: object, setting: str, error: type[Exception] = TypeError) -> None:
    """Check ``True``, ``False`` or ``None``.

    A string such as ``"false"`` would count as true.
    """
    if not (value is None or isinstance(value, bool)):
        raise error(f"{setting} must be True or False, not {_shown(value)}")


def check_time_span(value: object, setting: str, *, may_be_zero: bool = False) -> None:
    """Check a ``timedelta``.

    Raises ``TypeError`` for another type, and ``ValueError`` for one that is too short.
    """
    check_type(value, setting, dt.timedelta, "a datetime.timedelta, such as timedelta(seconds=30)")
    assert isinstance(value, dt.timedelta)
    if value < _ZERO or (value == _ZERO and not may_be_zero):
        raise ValueError(f"{setting} must be {'0 or more' if may_be_zero else 'more than 0'}, not {value}")


def check_count(value: object, setting: str) -> None:
    """Check a number.

    Raises ``TypeError`` for any other type than ``int``, and ``ValueError`` for a number below 1.
    """
    check_type(value, setting, int, "a whole number")
    assert isinstance(value, int)
    if value < 1:
        raise ValueError(f"{setting} must be 1 or more, not {value}")


def check_texts(value: object, setting: str, example: str) -> None:
    """Check a collection of strings.

    A single string would be taken as a collection of letters. Raises ``TypeError``.
    """
    if (
        isinstance(value, str | bytes | Mapping)
        or not isinstance(value, Collection)
        or not all(isinstance(text, str) for text in value)
    ):
        raise TypeError(f"{setting} must be a collection of strings, such as {example}, not {_shown(value)}")


def _shown(value: object) -> str:
    """The value in a message.

    Only its type is shown if it may hold a key, a password or a URL with a token.
    """
    is_harmless = value is None or isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 5)
    return repr(value) if is_harmless else f"a value of type {type(value).__name__}"
