"""The error of an expression that cannot be compiled."""

from typing import NamedTuple

from durably.engine.errors import EngineError
from durably.protocol.errors import ErrorCode

_SHOWN_LENGTH = 200


class Place(NamedTuple):
    """Where in an expression, counted from one."""

    line: int
    column: int


class ExpressionInvalidError(EngineError):
    """An expression is not valid. The message quotes it, says where the fault is, what it is, and what to write."""

    code = ErrorCode.FUNCTION_CONFIG_INVALID

    def __init__(self, text: str, reason: str, place: Place | None = None) -> None:
        shown = text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}…"
        where = f" at line {place.line}, column {place.column}" if place else ""
        super().__init__(f"the expression `{shown}` is not valid{where}: {reason}")
        self.text = text
        self.place = place
        self.reason = reason


class FaultError(Exception):
    """A fault met where the whole expression is not at hand; turned into an ``ExpressionInvalidError`` outside."""

    def __init__(self, reason: str, place: Place | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.place = place
