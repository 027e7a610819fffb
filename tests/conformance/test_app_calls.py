"""Calls of functions without steps: outputs, errors, and what every answer carries."""

import datetime as dt
import email.utils

import pytest

from .. import wire
from .app_under_test import App


def test_output_is_the_body_of_a_200(app: App) -> None:
    answer = app.call("plain", {"n": 1}, run_id="01RUNOFTHECALL", attempt=2)
    assert answer.output == {"data": {"n": 1}, "attempt": 2, "run_id": "01RUNOFTHECALL", "events": 1}


def test_a_batch_of_events_is_handed_over_whole(app: App) -> None:
    events = [wire.event("conformance/plain", {"n": n}, id=f"e{n}", ts=1) for n in range(3)]
    assert app.call("plain", events=events, trigger=events[0]).output["events"] == 3


def test_every_answer_says_which_sdk_it_is_from(app: App) -> None:
    headers = app.call("plain").headers
    assert ":v" in headers["x-inngest-sdk"]
    assert headers["x-inngest-req-version"].isdigit()
    assert headers["x-inngest-framework"]


def test_unknown_fields_and_nulls_are_tolerated(app: App) -> None:
    trigger = {"name": "conformance/plain", "data": {"n": 1}, "id": "e", "ts": 1, "v": None, "new": {"x": 1}}
    answer = app.call("plain", trigger=trigger, future={"x": 1}, stack=None)
    assert answer.output["data"] == {"n": 1}


def test_an_error_may_be_retried(app: App) -> None:
    answer = app.call("fail")
    assert answer.status == 500
    assert answer.headers.get("x-inngest-no-retry", "false") == "false"
    assert answer.json["message"] == "boom"
    assert answer.json["name"] in ("ValueError", "TypeError")
    assert "boom" in answer.json["stack"]


def test_a_non_retriable_error_may_not(app: App) -> None:
    answer = app.call("fail-for-good")
    assert answer.status in (400, 500)
    assert answer.headers["x-inngest-no-retry"] == "true"
    assert answer.json["message"] == "no more"
    assert answer.json["name"] == "NonRetriableError"


def test_retry_after_names_the_time_of_the_next_attempt(app: App) -> None:
    answer = app.call("retry-after")
    assert answer.status == 500
    assert answer.headers.get("x-inngest-no-retry", "false") == "false"
    delay = _seconds_until(answer.headers["retry-after"])
    assert delay == pytest.approx(3600, abs=60)


def test_the_failure_handler_is_a_function_of_its_own(app: App) -> None:
    failed = {
        "function_id": "conformance-guarded",
        "run_id": "01FAILED",
        "error": wire.error("guarded failed"),
        "event": wire.event("conformance/guarded", {"n": 1}),
        "events": [wire.event("conformance/guarded", {"n": 1})],
    }
    answer = app.call("guarded-failure", trigger=wire.event("inngest/function.failed", failed, id="e", ts=1))
    assert answer.output == {"error": "guarded failed", "event": "conformance/guarded"}


def test_an_unknown_function_is_an_error(app: App) -> None:
    answer = app.call("nonexistent")
    assert answer.status == 500
    assert "nonexistent" in answer.body.decode()


def test_a_call_of_no_function_is_refused(app: App) -> None:
    body = wire.canonical(wire.call_body(wire.event("conformance/plain", id="e", ts=1)))
    assert app.post({"stepId": "step"}, body).inner.status >= 400


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"ctx": 1}', b'{"ctx": {}, "steps": []}'])
def test_malformed_bodies_are_refused(app: App, body: bytes) -> None:
    app.excuse("inngest-npm", "its Node server ends on some of these")
    answer = app.post({"fnId": "conformance-plain", "stepId": "step"}, body).inner
    assert 400 <= answer.status <= 500


def _seconds_until(retry_after: str) -> float:
    if retry_after.isdigit():
        return float(retry_after)
    try:
        timestamp = dt.datetime.fromisoformat(retry_after)
    except ValueError:
        timestamp = email.utils.parsedate_to_datetime(retry_after)
    return (timestamp - dt.datetime.now(dt.UTC)).total_seconds()
