"""Requests of pages of other sites, by the headers of browsers; trace contexts, of which invalid ones are ignored."""

import pytest

from durably.protocol.headers import MAX_BAGGAGE, TraceContext, is_of_another_site, read_trace, trace_headers

HOST = {"host": "app.example.com"}


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": "https://app.example.com"},
        {"origin": "https://evil.example.com"},
        {"origin": "null"},
        {"origin": "https://app.example.com:8443"},
        {"origin": "https://app.example.com.evil.example.com"},
    ],
    ids=str,
)
def test_a_request_of_another_site(headers: dict[str, str]) -> None:
    assert is_of_another_site({**HOST, **headers})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "same-origin", "origin": "null"},
        {"sec-fetch-site": "none"},
        {"origin": "https://app.example.com"},
        {"origin": "https://APP.example.com"},
        {"origin": "https://public.example.com", "x-forwarded-host": "other.example.com, public.example.com"},
    ],
    ids=str,
)
def test_a_request_of_the_same_site(headers: dict[str, str]) -> None:
    assert not is_of_another_site({**HOST, **headers})


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
    assert read_trace({"traceparent": text}) == stored


def test_a_context_is_written_as_it_is_read() -> None:
    for more in ({}, {"state": "a=1"}, {"baggage": "b=2;c"}, {"state": "a=1,b=2", "baggage": "b=2"}):
        context = TraceContext(trace_id=1, span_id=2, is_sampled=False, **more)
        assert TraceContext.parse(str(context)) == context
        assert read_trace(trace_headers(str(context))) == str(context)


def test_invalid_state_and_baggage_are_left_out() -> None:
    parent = f"00-{IDS}-01"
    assert read_trace({"traceparent": f"{parent}\na=1"}) is None
    for value in ("a=1\nx: y", "a=é", "\x00", "x" * (MAX_BAGGAGE + 1)):
        assert read_trace({"traceparent": parent, "tracestate": value, "baggage": value}) == parent
    assert read_trace({"tracestate": "a=1", "baggage": "b=2"}) is None
    assert trace_headers(None) == {}
