"""Malformed requests: each gets its own problem, and none an internal error."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durably.temporal import Temporal
from durably.temporal.gateway import Gateway, GatewayRequest, GatewayResponse

from ..app_server import QUICK, AppServer, running
from ..apps import exposures
from ..bad_bytes import BAD_BYTES, CHUNKED, PROBLEMS, SAID_TO_BE_TOO_LARGE, Request, send
from ..dev_server import DevServer
from ..serve import SERVERS
from .gateway_client import get, make_request

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
"""There is no Temporal server: valid requests get 503."""
OF_THE_DOCUMENT = {"amount": 180, "first_seed": 7}
"""Requests of each kind, made from the OpenAPI document. ``make fuzz-temporal`` sends more."""


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
def test_each_malformed_request_has_its_status(
    gateway: Gateway, method: str, path: str, body: bytes, headers: dict[str, str], query: dict[str, str]
) -> None:
    response = gateway.handle_sync(
        GatewayRequest(
            method=method, path=path, mount="", headers=headers, query_params=query, body=body, raw_request=None
        )
    )
    assert response.status_code in EXPECTED, response.body
    assert response.headers["Content-Type"] == "application/problem+json"


def refused(gateway: Gateway, path: str, body: bytes = b"") -> GatewayResponse:
    response = gateway.handle_sync(make_request(None, "POST" if body else "GET", path, body))
    assert response.status_code == 400
    return response


@pytest.mark.parametrize("amount", ["1e999", "Infinity", '"inf"', "9" * 400])
def test_number_out_of_range_is_refused(gateway: Gateway, amount: str) -> None:
    body = b'{"order_id": "info", "amount": %b}' % amount.encode()
    refused(gateway, "orders", body)


def test_the_problem_of_a_body_with_many_errors_is_short(gateway: Gateway) -> None:
    order = {"order_id": "a", "amount": 1}
    many = refused(gateway, "orders", json.dumps({**order, "lines": [1] * 90_000}).encode())
    assert json.loads(many.body)["detail"] == "the input has 90000 errors"
    assert len(many.body) < 500
    name = "x" * 1_000_000
    nested = refused(gateway, "sum-of-pair", json.dumps({"pair": {"left": 1}, name: [1]}).encode())
    assert name[:200] in nested.body.decode()
    assert len(nested.body) < 1000
    few = refused(gateway, "orders", json.dumps({**order, "lines": [1] * 100}).encode())
    assert len(json.loads(few.body)["errors"]) == 100


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("orders/a", {"run_id": "\ud800"}),
        ("orders/a/events", {"run_id": "\ud800"}),
        ("orders/a/queries/note", {"index": "\ud800"}),
        ("orders/a/queries/state", {"\ud800": "1"}),
        ("orders/a/updates/change_address/\ud800", {}),
        ("orders/a/queries/\ud800", {}),
        ("\ud800", {}),
        *(("orders", {name: "\ud800"}) for name in ("status", "page_size", "started_after")),
    ],
)
def test_invalid_unicode_in_an_input_is_a_bad_request(gateway: Gateway, path: str, query: dict[str, str]) -> None:
    response = gateway.handle_sync(replace(get(path), query_params=query))
    assert response.status_code in (400, 404), response.body


@pytest.mark.slow
def test_requests_made_from_the_document_reveal_nothing_of_other_users(some_quick_app: AppServer) -> None:
    from ..fuzz import fuzz, make_attempts  # schemathesis takes long to import

    report = fuzz(some_quick_app, make_attempts(some_quick_app, **OF_THE_DOCUMENT))
    assert not report.faults, "\n\n".join(f"{kind}\n  {request}" for kind, request in report.faults.items())
    assert report.statuses.total() >= 180
    assert {200, 202, 400, 404} <= report.statuses.keys()
    assert report.foreign.total() >= 20
    assert set(report.foreign) <= {400, 404, 413, 415}, report.foreign


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
def test_malformed_requests_without_a_server_are_refused_or_get_503(name: str) -> None:
    from ..fuzz import fuzz, make_attempts  # schemathesis takes long to import

    with running(name, DevServer().address, **QUICK) as app:
        report = fuzz(app, make_attempts(app, **OF_THE_DOCUMENT)[::3], is_server_absent=True)
    assert not report.faults, "\n\n".join(f"{kind}\n  {request}" for kind, request in report.faults.items())
    assert report.statuses.total() > 60
    assert {400, 503} <= report.statuses.keys()


def test_all_errors_below_the_mount_point_are_problem_documents(quick_app: AppServer) -> None:
    wrong = {}
    for name, (request, expected) in PROBLEMS.items():
        answer = send(quick_app.origin, request)
        if answer is None or answer.status not in expected or answer.media_type != "application/problem+json":
            wrong[name] = answer
    assert wrong == {}


def test_a_large_body_is_refused_before_it_is_sent(quick_app: AppServer) -> None:
    if quick_app.name in ("django-asgi", "tornado"):
        return  # They read a whole request, within their own limits.
    answer = send(quick_app.origin, SAID_TO_BE_TOO_LARGE)
    assert answer is not None
    assert (answer.status, answer.media_type) == (413, "application/problem+json")


@pytest.mark.parametrize("name", ["fastapi", "flask"])
def test_a_body_in_chunks_is_read_up_to_the_limit(name: str, apps: Callable[..., AppServer]) -> None:
    """It never ends."""
    chunk = b"10000\r\n%s\r\n" % (b" " * 65536)
    answer = send(apps(name, **QUICK).origin, CHUNKED + 33 * chunk, ends=False)
    assert answer is not None
    assert (answer.status, answer.media_type) == (413, "application/problem+json")


def test_malformed_bytes_do_no_harm(quick_app: AppServer) -> None:
    """The web servers refuse most of them with responses of their own, or close the connection."""
    answers = {name: send(quick_app.origin, request) for name, request in BAD_BYTES.items()}
    assert {name: answer for name, answer in answers.items() if answer and answer.status >= 500} == {}
    assert send(quick_app.origin, Request("GET", "/open/orders/none")).status == 404  # type: ignore[union-attr]
