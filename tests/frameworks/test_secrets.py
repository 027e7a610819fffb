"""Keys appear in no answer, no log line and no error, whatever happens."""

import logging

import pytest

from . import wire
from .engine import FakeEngine
from .servers import Server


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def assert_clean(caplog: pytest.LogCaptureFixture, *answers: wire.Answer) -> None:
    shown = [caplog.text]
    for answer in answers:
        shown += [str(dict(answer.headers)), answer.body.decode()]
    for secret in wire.SECRETS:
        for text in shown:
            assert secret not in text
    for text in shown:
        assert wire.bearer().removeprefix("Bearer ") not in text  # as good as the key, to the engine


def test_inspection_and_sync(server: Server, engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    url, body = server.url("cloud"), wire.encode({"url": "https://app.example.com"})
    in_band = {"x-inngest-sync-kind": "in_band", "x-inngest-signature": wire.sign(body)}
    engine.answers["/fn/register"] = lambda received: (400, {"error": "no"})
    assert_clean(
        caplog,
        wire.request("GET", url),
        wire.request("GET", url, headers={"x-inngest-signature": wire.sign(b"")}),
        wire.request("GET", url, headers={"x-inngest-signature": wire.sign(b"", wire.WRONG_KEY)}),
        wire.request("PUT", url, body, in_band),
        wire.request("PUT", url, b""),
        wire.request("PUT", server.url("away"), b""),
    )


def test_calls(server: Server, engine: FakeEngine, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    url, app = server.url("cloud"), "app-cloud"
    use_api = wire.call_body(use_api=True)
    engine.answers["/v0/runs/01RUN/actions"] = 500, {"error": "no"}
    assert_clean(
        caplog,
        wire.call(url, f"{app}-raises-{kind}", wire.call_body({"how": "plain"}), key=wire.SIGNING_KEY),
        wire.call(url, f"{app}-step-raises-{kind}", wire.call_body({"how": "plain"}), key=wire.SIGNING_KEY),
        wire.call(url, f"{app}-plain-{kind}", wire.call_body(), key=wire.WRONG_KEY),
        wire.call(url, f"{app}-plain-{kind}", b"{", key=wire.FALLBACK_KEY),
        wire.call(url, f"{app}-plain-{kind}", use_api, key=wire.SIGNING_KEY),
        wire.call(server.url("away"), f"app-away-plain-{kind}", use_api, key=wire.SIGNING_KEY),
    )


@pytest.mark.parametrize(
    "engines_answer",
    [
        (200, {"ids": ["01A"], "status": 200}),
        (400, {"error": f"nothing at /e/{wire.EVENT_KEY}", "status": 400}),
        (404, f"nothing at /e/{wire.EVENT_KEY}".encode()),
        (503, {"error": f"/e/{wire.EVENT_KEY} is busy"}),
    ],
)
def test_events_sent_from_a_step(
    server: Server,
    engine: FakeEngine,
    kind: str,
    caplog: pytest.LogCaptureFixture,
    engines_answer: tuple[int, object],
) -> None:
    engine.answers[f"/e/{wire.EVENT_KEY}"] = engines_answer
    answer = wire.call(server.url("cloud"), f"app-cloud-sends-{kind}", wire.call_body(), key=wire.SIGNING_KEY)
    assert answer.ops == [("StepRun" if engines_answer[0] == 200 else "StepError", "send")]
    assert len(engine.to(f"/e/{wire.EVENT_KEY}")) == (5 if engines_answer[0] == 503 else 1)
    assert_clean(caplog, answer)


def test_events_sent_to_an_engine_that_is_away(server: Server, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    answer = wire.call(server.url("away"), f"app-away-sends-{kind}", wire.call_body(), key=wire.SIGNING_KEY)
    assert answer.json[0]["error"]["name"] == "SendEventsError"
    assert "cannot reach http://127.0.0.1:9: connection refused" in answer.json[0]["error"]["message"]
    assert_clean(caplog, answer)
