"""Keys appear in no answer, no log line and no error, whatever happens."""

import logging

import pytest

from ..fake_engine import FakeEngine
from . import app_calls
from .servers import Server


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def assert_clean(caplog: pytest.LogCaptureFixture, *answers: app_calls.Answer) -> None:
    shown = [caplog.text]
    for answer in answers:
        shown += [str(dict(answer.headers)), answer.body.decode()]
    for secret in app_calls.SECRETS:
        for text in shown:
            assert secret not in text
    for text in shown:
        assert app_calls.bearer().removeprefix("Bearer ") not in text  # as good as the key, to the engine


def test_inspection_and_sync_show_no_secret(
    server: Server, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    url, body = server.url("cloud"), app_calls.canonical({"url": "https://app.example.com"})
    in_band = {"x-inngest-sync-kind": "in_band", "x-inngest-signature": app_calls.sign(body)}
    engine.answers["/fn/register"] = lambda received: (400, {"error": "no"})
    assert_clean(
        caplog,
        app_calls.request("GET", url),
        app_calls.request("GET", url, headers={"x-inngest-signature": app_calls.sign(b"")}),
        app_calls.request("GET", url, headers={"x-inngest-signature": app_calls.sign(b"", app_calls.WRONG_KEY)}),
        app_calls.request("PUT", url, body, in_band),
        app_calls.request("PUT", url, b""),
        app_calls.request("PUT", server.url("away"), b""),
    )


def test_calls_show_no_secret(server: Server, engine: FakeEngine, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    url, app = server.url("cloud"), "app-cloud"
    use_api = app_calls.call_body(use_api=True)
    engine.answers["/v0/runs/01RUN/actions"] = 500, {"error": "no"}
    assert_clean(
        caplog,
        app_calls.call(url, f"{app}-raises-{kind}", app_calls.call_body({"how": "plain"}), key=app_calls.SIGNING_KEY),
        app_calls.call(
            url, f"{app}-step-raises-{kind}", app_calls.call_body({"how": "plain"}), key=app_calls.SIGNING_KEY
        ),
        app_calls.call(url, f"{app}-plain-{kind}", app_calls.call_body(), key=app_calls.WRONG_KEY),
        app_calls.call(url, f"{app}-plain-{kind}", b"{", key=app_calls.FALLBACK_KEY),
        app_calls.call(url, f"{app}-plain-{kind}", use_api, key=app_calls.SIGNING_KEY),
        app_calls.call(server.url("away"), f"app-away-plain-{kind}", use_api, key=app_calls.SIGNING_KEY),
    )


@pytest.mark.parametrize(
    "engines_answer",
    [
        (200, {"ids": ["01A"], "status": 200}),
        (400, {"error": f"nothing at /e/{app_calls.EVENT_KEY}", "status": 400}),
        (404, f"nothing at /e/{app_calls.EVENT_KEY}".encode()),
        (503, {"error": f"/e/{app_calls.EVENT_KEY} is busy"}),
    ],
)
def test_events_sent_from_a_step(
    server: Server,
    engine: FakeEngine,
    kind: str,
    caplog: pytest.LogCaptureFixture,
    engines_answer: tuple[int, object],
) -> None:
    engine.answers[f"/e/{app_calls.EVENT_KEY}"] = engines_answer
    answer = app_calls.call(
        server.url("cloud"), f"app-cloud-sends-{kind}", app_calls.call_body(), key=app_calls.SIGNING_KEY
    )
    op = {200: "StepRun", 400: "StepFailed"}.get(engines_answer[0], "StepError")  # 400: the events are invalid
    assert answer.ops == [(op, "send")]
    assert len(engine.to(f"/e/{app_calls.EVENT_KEY}")) == (5 if engines_answer[0] == 503 else 1)
    assert_clean(caplog, answer)


def test_events_sent_to_an_unreachable_engine_show_no_secret(
    server: Server, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = app_calls.call(
        server.url("away"), f"app-away-sends-{kind}", app_calls.call_body(), key=app_calls.SIGNING_KEY
    )
    assert answer.json[0]["error"]["name"] == "SendEventsError"
    assert "cannot reach http://127.0.0.1:9: connection refused" in answer.json[0]["error"]["message"]
    assert_clean(caplog, answer)
