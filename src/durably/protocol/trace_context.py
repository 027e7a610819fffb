"""Trace contexts of the W3C, as they travel in the header ``traceparent``.

The engine stores the context of an event's sender, and passes it to the calls of the runs that the event starts.
"""

import re
from typing import NamedTuple, Self

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]*)?")
_MAX_LENGTH = 256
_INVALID_VERSION = "ff"
_SAMPLED = 1


class TraceContext(NamedTuple):
    """The ids of a span and of its trace, and whether the trace is sampled."""

    trace_id: int
    span_id: int
    is_sampled: bool

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The context in a ``traceparent``; ``None`` if it is invalid.

        The specification requires to ignore invalid ones. A version after 00 may have more fields.
        """
        match = _TRACEPARENT.fullmatch(text) if len(text) <= _MAX_LENGTH else None
        if match is None:
            return None
        version, trace_id, span_id, flags, rest = match.groups()
        if version == _INVALID_VERSION or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED))

    def __str__(self) -> str:
        """The ``traceparent``."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.is_sampled:02x}"


def read_traceparent(text: str | None) -> str | None:
    """A received ``traceparent`` as it is stored; ``None`` if it is invalid."""
    context = None if text is None else TraceContext.parse(text)
    return None if context is None else str(context)
