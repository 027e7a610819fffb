"""Reading an option's values from an app's configuration, and refusing invalid ones."""

import datetime as dt
from enum import StrEnum
from typing import TypeVar

import msgspec

from durably.engine.core.errors import ConfigInvalidError
from durably.engine.core.expressions import Expression, ExpressionInvalidError, Kind, compile_expression
from durably.protocol.durations import DurationInvalidError, format_duration, parse_duration, parse_rfc3339
from durably.protocol.limits import MAX_COUNT, MAX_WAIT

_MILLISECOND = dt.timedelta(milliseconds=1)
_SECOND = dt.timedelta(seconds=1)
_LONGEST_QUOTE = 80

Choice = TypeVar("Choice", bound=StrEnum)


class Deadline(msgspec.Struct, frozen=True):
    """``after`` so many milliseconds, or ``at`` a fixed time."""

    after: int = 0
    at: int | None = None

    def counted_from(self, now: int) -> int:
        return now + self.after if self.at is None else self.at


class OptionReader:
    """Reads values of one function's options. Every method raises ``ConfigInvalidError``, which names both."""

    def __init__(self, function_id: str) -> None:
        self.function_id = function_id

    def refuse(self, option: str, reason: str) -> ConfigInvalidError:
        return ConfigInvalidError(f"function {self.function_id!r}: {option} {reason}")

    def expression(
        self, option: str, text: str | None, *, has_async: bool = False, gives: Kind | None = None
    ) -> Expression | None:
        """``None`` where there is none: SDKs also send empty text. ``has_async``: may it name the newcomer? ``gives``
        is what it must give to be of any use; an expression that never does is refused."""
        if text is None or not text.strip():
            return None
        try:
            expression = compile_expression(text, has_async=has_async)
        except ExpressionInvalidError as error:
            raise self.refuse(option, f"is not valid: {error}") from error
        if expression.missing_field:
            raise self.refuse(option, f"is `{_shorten(text)}`, which {expression.missing_field}")
        if gives is not None and gives not in expression.kinds:
            raise self.refuse(option, f"is `{_shorten(text)}`, which can never give {gives.value}, as it must")
        return expression

    def duration(
        self, option: str, text: str, *, at_least: dt.timedelta = _SECOND, at_most: dt.timedelta = MAX_WAIT
    ) -> int:
        """Milliseconds, rounded up."""
        try:
            duration = parse_duration(text)
        except DurationInvalidError as error:
            raise self.refuse(option, f"is not valid: {error}") from error
        if not at_least <= duration <= at_most:
            least, most = format_duration(at_least), format_duration(at_most)
            raise self.refuse(option, f"is {_shorten(text)!r}; it must be between {least} and {most}")
        return -(-duration // _MILLISECOND)

    def deadline(self, option: str, text: str | None) -> Deadline | None:
        """A duration, or a date that is the same for all runs; ``None`` where there is none."""
        if text is None or not text.strip():
            return None
        if len(text) >= 10 and (moment := parse_rfc3339(text)):
            return Deadline(at=round(moment.timestamp() * 1000))
        return Deadline(after=self.duration(option, text))

    def count(self, option: str, value: int, *, at_least: int = 1, at_most: int = MAX_COUNT) -> int:
        if value < at_least:
            raise self.refuse(option, f"is {value}; it must be at least {at_least}")
        if value > at_most:
            raise self.refuse(option, f"is {_shorten(str(value))}; it must be at most {at_most}")
        return value

    def choice(self, option: str, value: str, choices: type[Choice]) -> Choice:
        try:
            return choices(value)
        except ValueError:
            names = ", ".join(repr(choice.value) for choice in choices)
            raise self.refuse(option, f"is {_shorten(value)!r}; it must be one of {names}") from None


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"
