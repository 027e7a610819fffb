"""POST: calls of functions of both kinds, and what their answers carry."""

import pytest

from ..fake_engine import Answer, FakeEngine
from . import app_calls
from .servers import Server


def test_a_function_without_steps(server: Server, kind: str) -> None:
    body = app_calls.call_body({"text": "naïve ☃"}, run_id="01THISRUN", attempt=3)
    answer = app_calls.call(server.url("dev"), f"app-dev-plain-{kind}", body)
    assert answer.status == 200
    assert {**answer.json, "in_request_thread": 0, "request_name": 0} == {
        "data": {"text": "naïve ☃"},
        "events": 1,
        "run_id": "01THISRUN",
        "attempt": 3,
        "in_request_thread": 0,
        "request_name": 0,
    }


def test_at_the_default_path(server: Server, kind: str) -> None:
    assert app_calls.call(server.url("default"), f"app-default-plain-{kind}", app_calls.call_body()).status == 200


def test_every_answer_has_the_protocols_headers(server: Server, kind: str) -> None:
    url, function_id = server.url("cloud"), f"app-cloud-plain-{kind}"
    for answer in (
        app_calls.call(url, function_id, app_calls.call_body(), key=app_calls.SIGNING_KEY),
        app_calls.call(url, "app-cloud-steps-sync", app_calls.call_body(), key=app_calls.SIGNING_KEY),
        app_calls.call(url, "no-such-function", app_calls.call_body(), key=app_calls.SIGNING_KEY),
        app_calls.call(url, function_id, b"{", key=app_calls.SIGNING_KEY),
        app_calls.call(url, function_id, app_calls.call_body()),
        app_calls.request("GET", url),
        app_calls.request("PUT", url, b""),
    ):
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-inngest-sdk"].startswith("durably:v")
        assert answer.headers["user-agent"] == answer.headers["x-inngest-sdk"]
        assert answer.headers["x-inngest-req-version"] == "2"
        assert answer.headers["x-inngest-framework"] == server.framework
        assert answer.headers["x-inngest-env"] == "my-env"
        assert answer.headers["x-inngest-expected-server-kind"] == "cloud"
        assert answer.headers["server-timing"].startswith("comm_handler;dur=")


# -- steps


def test_steps_one_call_after_the_other(server: Server, kind: str) -> None:
    url, function_id = server.url("dev"), f"app-dev-steps-{kind}"
    memos: dict[str, object] = {}

    answer = app_calls.call(url, function_id, app_calls.call_body(steps=memos))
    assert answer.ops == [("StepRun", "one")]
    assert (answer.json[0]["id"], answer.json[0]["data"]) == (app_calls.step_hash("one"), 1)

    memos["one"] = {"type": "data", "data": "from the engine"}
    answer = app_calls.call(url, function_id, app_calls.call_body(steps=memos))
    assert answer.ops == [("Sleep", "nap")]
    assert answer.json[0]["opts"] == {"duration": "90s"}

    memos["nap"] = None
    answer = app_calls.call(url, function_id, app_calls.call_body(steps=memos))
    assert answer.ops == [("StepRun", "two")]

    memos["two"] = {"data": 2}
    answer = app_calls.call(url, function_id, app_calls.call_body(steps=memos))
    assert (answer.status, answer.json) == (200, ["from the engine", 2])


# -- errors


def test_an_error_is_answered_with_name_message_and_traceback(server: Server, kind: str) -> None:
    answer = app_calls.call(server.url("dev"), f"app-dev-raises-{kind}", app_calls.call_body({"how": "plain"}))
    assert answer.status == 500
    assert answer.headers["x-inngest-no-retry"] == "false"
    error = answer.json
    assert (error["name"], error["message"]) == ("OddError", "oh no")
    assert error["stack"].startswith("Traceback")
    assert "functions.py" in error["stack"]
    assert "src/durably" not in error["stack"]


@pytest.mark.parametrize(
    ("how", "attempt", "op", "no_retry"),
    [
        ("plain", 0, "StepError", "false"),
        ("plain", 4, "StepFailed", "false"),
        ("no retry", 0, "StepFailed", "true"),
        ("retry after", 0, "StepError", "false"),
    ],
)
def test_an_error_in_a_step(server: Server, kind: str, how: str, attempt: int, op: str, no_retry: str) -> None:
    body = app_calls.call_body({"how": how}, attempt=attempt, max_attempts=5)
    answer = app_calls.call(server.url("dev"), f"app-dev-step-raises-{kind}", body)
    assert answer.ops == [(op, "bad")]
    assert answer.headers["x-inngest-no-retry"] == no_retry
    assert ("retry-after" in answer.headers) == (how == "retry after")
    assert answer.json[0]["error"]["message"]


# -- middleware


def test_middleware_sees_the_frameworks_own_request(server: Server, kind: str) -> None:
    answer = app_calls.call(
        server.url("dev"), f"app-dev-middle-{kind}", app_calls.call_body(), headers={"x-name": "Ada"}
    )
    assert answer.status == 200
    request_type = {
        "asgi": "scope",
        "fast_api": "starlette.requests.Request",
        "starlette": "starlette.requests.Request",
        "litestar": "litestar.connection.request.Request",
        "quart": "quart.wrappers.request.Request",
        "aiohttp": "aiohttp.web_request.Request",
        "sanic": "sanic.request.types.Request",
        "wsgi": "environ",
        "flask": "flask.wrappers.Request",
        "django": "django.core.handlers.asgi.ASGIRequest"
        if server.is_async
        else "django.core.handlers.wsgi.WSGIRequest",
        "tornado": "tornado.httputil.HTTPServerRequest",
        "digitalocean": "event",
        "aws-lambda": "event",
        "google-cloud": "flask.wrappers.Request",
    }[server.framework]
    expected = {"type": request_type, "name": "Ada"}
    assert answer.json["async"] == expected
    assert answer.json["sync"] == expected
    assert answer.json["order"] == ["sync", "async"]  # the output passes them in reverse


# -- the API instead of the body


def use_api_body() -> bytes:
    return app_calls.canonical(app_calls.call_body(use_api=True, run_id="01BIGRUN"))


def test_a_large_runs_state_is_fetched(server: Server, engine: FakeEngine, kind: str) -> None:
    events = [{"name": "test/event", "data": {"n": n}, "ts": 1, "id": f"e{n}"} for n in range(3)]
    engine.answers["/v0/runs/01BIGRUN/actions"] = (
        200,
        {app_calls.step_hash("one"): {"data": 1}, app_calls.step_hash("nap"): None},
    )
    engine.answers["/v0/runs/01BIGRUN/batch"] = 200, events
    answer = app_calls.call(server.url("cloud"), f"app-cloud-steps-{kind}", use_api_body(), key=app_calls.SIGNING_KEY)
    assert answer.ops == [("StepRun", "two")]
    assert {received.headers["authorization"] for received in engine.to("/v0/runs/")} == {app_calls.bearer()}
    assert "use_api;dur=" in answer.headers["server-timing"]

    answer = app_calls.call(server.url("cloud"), f"app-cloud-plain-{kind}", use_api_body(), key=app_calls.SIGNING_KEY)
    assert (answer.json["data"], answer.json["events"]) == ({"n": 0}, 3)


@pytest.mark.parametrize("fetched", [(404, {"error": "no such run"}), (200, b"<html>"), (200, [1, 2]), (503, b"")])
def test_unfetchable_state_fails_the_attempt(server: Server, engine: FakeEngine, fetched: Answer) -> None:
    engine.answers["/v0/runs/01BIGRUN/actions"] = fetched
    answer = app_calls.call(server.url("cloud"), "app-cloud-steps-sync", use_api_body(), key=app_calls.SIGNING_KEY)
    assert answer.status == 500  # to be tried again
    assert "the run's actions" in answer.json["message"]
    assert answer.headers.get("x-inngest-no-retry") != "true"


# -- probes


# -- signatures


@pytest.mark.parametrize("key", [app_calls.SIGNING_KEY, app_calls.FALLBACK_KEY])
def test_the_answer_is_signed_with_the_key_that_signed_the_call(server: Server, kind: str, key: str) -> None:
    answer = app_calls.call(server.url("cloud"), f"app-cloud-plain-{kind}", app_calls.call_body({"x": "é"}), key=key)
    assert answer.status == 200
    assert app_calls.is_signed(answer, key)


@pytest.mark.parametrize(
    "signature", [None, "", "nonsense", "t=&s=", "t=1&s=" + "0" * 64, "s=ff", app_calls.sign(b"something else")]
)
def test_a_badly_signed_call_is_refused(server: Server, signature: str | None) -> None:
    headers = {} if signature is None else {"x-inngest-signature": signature}
    answer = app_calls.call(server.url("cloud"), "app-cloud-plain-sync", app_calls.call_body(), headers=headers)
    assert answer.status == 401
    assert answer.json["code"] == ("sig_verification_failed" if signature else "header_missing")
    assert "x-inngest-signature" not in answer.headers


def test_development_accepts_any_signature(server: Server) -> None:
    """A correct signature gets a signed answer. A wrong one counts as absent, since engines there may not sign."""
    url, function_id = server.url("dev-keys"), "app-dev-keys-plain-sync"
    assert app_calls.is_signed(app_calls.call(url, function_id, app_calls.call_body(), key=app_calls.SIGNING_KEY))
    for key in (None, app_calls.WRONG_KEY):
        answer = app_calls.call(url, function_id, app_calls.call_body(), key=key)
        assert answer.status == 200
        assert "x-inngest-signature" not in answer.headers


def test_a_line_of_a_step_has_its_fields(server: Server, kind: str) -> None:
    body = app_calls.call_body(run_id=f"01RUN{server.name}")
    [op] = app_calls.call(server.url("dev"), f"app-dev-fields-{kind}", body).json
    assert op["data"] == {
        "app_id": "app-dev",
        "function_id": f"app-dev-fields-{kind}",
        "run_id": f"01RUN{server.name}",
        "step_id": "log",
        "line": f"[app-dev-fields-{kind} 01RUN{server.name} log] paid 42",
    }


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


@pytest.mark.parametrize("user_agent", ["durably", "inngest"])
def test_a_step_runs_in_its_span(server: Server, kind: str, user_agent: str) -> None:
    headers = {"traceparent": TRACEPARENT, "user-agent": user_agent}
    answer = app_calls.call(server.url("traced"), f"app-traced-traces-{kind}", app_calls.call_body(), headers=headers)
    [op] = answer.json
    span = op["data"]
    assert span["name"] == "step spans"
    # Another engine's trace is its own: spans of the app would be lost in it.
    assert (span["trace_id"] == TRACE_ID) is (user_agent == "durably")


def test_a_client_that_is_not_instrumented_makes_no_span(server: Server, kind: str) -> None:
    headers = {"traceparent": TRACEPARENT, "user-agent": "durably"}
    [op] = app_calls.call(server.url("dev"), f"app-dev-traces-{kind}", app_calls.call_body(), headers=headers).json
    assert op["data"] == {"name": None, "trace_id": "0" * 32}
