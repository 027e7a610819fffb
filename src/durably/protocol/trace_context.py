"""W3C trace contexts and baggage, in headers and as engines store them.

The engine stores the context of an event's sender, and passes it to the calls of the runs that the event starts. A
context is stored as one string: its ``traceparent``, and ``tracestate`` and ``baggage`` if present, on a line each.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple, Self

from .headers import Header

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]*)?")
_MAX_LENGTH = 256
_INVALID_VERSION = "ff"
_SAMPLED = 1
_VALUE = re.compile(r"[\x20-\x7e]*")
MAX_STATE, MAX_BAGGAGE = 512, 8192
"""Maximum bytes of ``tracestate`` and ``baggage`` that are passed on. The specifications allow dropping longer ones."""


class TraceContext(NamedTuple):
    """The ids of a span and of its trace, with the state and baggage of the trace.

    ``is_sampled``: the trace is sampled. ``state`` and ``baggage`` are the values of the headers, ``""`` if there are
    none.
    """

    trace_id: int
    span_id: int
    is_sampled: bool
    state: str = ""
    baggage: str = ""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse the stored form of a context, such as a ``traceparent``.

        ``None`` if it is invalid, because the specification requires ignoring invalid contexts. A version after 00 may
        have more fields.
        """
        text, *rest_of_trace = text.split("\n")
        state, baggage = (*rest_of_trace, "", "")[:2]
        match = _TRACEPARENT.fullmatch(text) if len(text) <= _MAX_LENGTH else None
        if match is None:
            return None
        version, trace_id, span_id, flags, rest = match.groups()
        if version == _INVALID_VERSION or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED), state, baggage)

    def __str__(self) -> str:
        """The context in its stored form."""
        parent = f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.is_sampled:02x}"
        return f"{parent}\n{self.state}\n{self.baggage}".rstrip("\n")


def read_trace(headers: Mapping[str, str | None]) -> str | None:
    """The context in received headers, in its stored form.

    ``None`` if there is no valid one. A ``tracestate`` or ``baggage`` that is too long or not printable is omitted.
    """
    parent = headers.get(Header.TRACEPARENT)
    context = None if not parent or "\n" in parent else TraceContext.parse(parent)
    if context is None:
        return None
    state, baggage = headers.get(Header.TRACESTATE) or "", headers.get(Header.BAGGAGE) or ""
    return str(context._replace(state=_read(state, MAX_STATE), baggage=_read(baggage, MAX_BAGGAGE)))


def trace_headers(kept: str | None) -> dict[str, str]:
    """The headers that pass on a context in its stored form."""
    if not kept:
        return {}
    if "\n" not in kept:
        return {Header.TRACEPARENT.value: kept}
    parent, state, baggage = (*kept.split("\n"), "")[:3]
    values = {Header.TRACEPARENT.value: parent, Header.TRACESTATE.value: state, Header.BAGGAGE.value: baggage}
    return {name: value for name, value in values.items() if value}


def _read(value: str, longest: int) -> str:
    return value.strip() if len(value) <= longest and _VALUE.fullmatch(value) else ""
