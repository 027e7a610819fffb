"""``traceparent`` headers: valid ones are continued, all others are ignored."""

import pytest

from durably.protocol.trace_context import TraceContext, read_traceparent

IDS = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (f"00-{IDS}-01", f"00-{IDS}-01"),
        (f"00-{IDS}-00", f"00-{IDS}-00"),
        (f"00-{IDS}-ff", f"00-{IDS}-01"),
        (f"cc-{IDS}-01-what-the-future-holds", f"00-{IDS}-01"),
        (None, None),
        ("", None),
        (f"ff-{IDS}-01", None),
        (f"00-{IDS}-01-more", None),
        (f"00-{IDS.upper()}-01", None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01", None),
        (f" 00-{IDS}-01", None),
        (f"00-{IDS}-01\n", None),
        (f"cc-{IDS}-01-" + "x" * 1_000_000, None),
    ],
)
def test_only_valid_contexts_are_stored(text: str | None, stored: str | None) -> None:
    assert read_traceparent(text) == stored


def test_a_context_is_written_as_it_is_read() -> None:
    context = TraceContext(trace_id=1, span_id=2, is_sampled=False)
    assert TraceContext.parse(str(context)) == context
