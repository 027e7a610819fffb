"""Requests that make no sense: each is answered as what it is, none with an error of the gateway's own.

There is no server behind, so that what does make sense is answered with 503.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durably.temporal import Temporal
from durably.temporal.gateway import Gateway, GatewayRequest

from .apps import exposures

SEGMENTS = st.sampled_from(
    [
        *("orders", "sum-of-pair", "signals", "queries", "updates", "cancel", "reset", "result", "history", "events"),
        *("signal-with-start", "ship", "note", "add_note", "change_address", "x", "", ".", "%"),
    ]
)
PATHS = st.lists(SEGMENTS | st.text(max_size=5), max_size=6).map("/".join)
BODIES = st.binary(max_size=40) | st.sampled_from(
    [
        b"",
        b"{}",
        b"null",
        b"[]",
        b"NaN",
        b'{"order_id": "\\ud800", "amount": 1}',
        b'{"order_id": "a", "amount": 1e999}',
        b"[" * 10_000,
        b'{"input": {}, "signal": 1}',
        b'{"event_id": -1}',
        b'{"pair": {"left": 1}}',
        b"9" * 5000,
    ]
)
HEADERS = st.dictionaries(
    st.sampled_from(["Content-Type", "Prefer", "Idempotency-Key", "Last-Event-ID"]),
    st.sampled_from(["application/json", "wait=1", "wait=" + "9" * 30, "", "\x00", "é", "text/plain"]),
)
QUERIES = st.dictionaries(
    st.sampled_from(["wait", "page", "page_size", "run_id", "query", "status", "index"]),
    st.text(max_size=8) | st.sampled_from(["1", "-1", "9" * 30, "'"]),
)
EXPECTED = {400, 404, 405, 413, 415, 503}


@pytest.fixture(scope="module")
def gateway() -> Gateway:
    return Gateway(Temporal("127.0.0.1:1", task_queue="none"), exposures(), allow_anonymous=True)


@settings(max_examples=400, deadline=None)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", ""]),
    path=PATHS,
    body=BODIES,
    headers=HEADERS,
    query=QUERIES,
)
def test_each_is_answered_as_what_it_is(
    gateway: Gateway, method: str, path: str, body: bytes, headers: dict[str, str], query: dict[str, str]
) -> None:
    response = gateway.handle_sync(
        GatewayRequest(
            method=method, path=path, mount="", headers=headers, query_params=query, body=body, raw_request=None
        )
    )
    assert response.status_code in EXPECTED, response.body
    assert response.headers["Content-Type"] == "application/problem+json"
