"""Durable endpoints in each framework: results, links, refusals. ``handle_stories.py`` has them on each engine."""

import json
import logging
from typing import Any

import pytest

from durably.protocol.limits import MAX_FORM_BYTES

from ..fake_engine import FakeEngine, Received
from . import app_calls
from .endpoints import FUNCTION_ID, PATH, client_of_tests
from .servers import Server

RUN_ID = "01J0000000ABCDEFGHJKMNPQRS"
INVOKE, END = f"/invoke/{FUNCTION_ID}", f"/v1/runs/{RUN_ID}/end"


def run(status: str, output: Any = None) -> dict[str, Any]:
    started = "2026-01-01T00:00:00Z"
    data = {"run_id": RUN_ID, "function_id": FUNCTION_ID, "status": status, "run_started_at": started, "output": output}
    return {"data": data, "metadata": {"fetched_at": started}}


@pytest.fixture(autouse=True)
def _runs(engine: FakeEngine) -> None:
    engine.answers[INVOKE] = 200, {"id": RUN_ID, "run_id": RUN_ID, "status": 200}
    engine.answers["/v1/engine"] = 200, {"data": {"kind": "sqlite"}, "metadata": {"fetched_at": "2026-01-01T00:00:00Z"}}
    engine.answers[END] = 200, run("Completed", {"paid": 1})


def post(server: Server, data: Any, **headers: str) -> app_calls.Answer:
    sent = {"x-user": "ada"} | {name.replace("_", "-"): text for name, text in headers.items()}
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return app_calls.request("POST", server.origin + PATH, body, sent)


def follow(server: Server, url: str) -> app_calls.Answer:
    return app_calls.request("GET", server.origin + url)


def test_a_post_is_answered_with_the_result_of_its_run(server: Server, engine: FakeEngine) -> None:
    answer = post(server, {"user": "ada", "n": [1, "é"]})
    assert (answer.status, answer.json) == (200, {"paid": 1})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    [started] = engine.to(INVOKE)
    assert started.json == {"data": {"user": "ada", "n": [1, "é"]}}


def test_a_run_that_takes_longer_is_answered_with_a_link(server: Server, engine: FakeEngine) -> None:
    engine.answers[END] = 200, run("Running")
    answer = post(server, {"user": "ada"})
    assert (answer.status, answer.headers["retry-after"]) == (202, "1")
    token = answer.json["token"]
    url = f"{PATH}?token={token}"
    # DigitalOcean's simulator answers at the path of the test, as if it was that of the function.
    path = "/api/v1/web/fn-00000000/default/app" if server.framework == "digitalocean" else PATH
    assert answer.json == {"run_id": RUN_ID, "url": f"{path}?token={token}", "token": token}
    assert answer.headers["location"] == answer.json["url"]
    still = follow(server, url)
    assert (still.status, still.headers["location"], still.json) == (202, answer.json["url"], answer.json)
    engine.answers[END] = 200, run("Failed", {"name": "ValueError", "message": "no card", "stack": "in secret.py"})
    failed = follow(server, url)
    assert (failed.status, failed.json) == (500, {"name": "ValueError", "message": "no card", "run_id": RUN_ID})
    engine.answers[END] = 200, run("Skipped", {"message": "the rate limit"})
    assert follow(server, url).status == 429
    engine.answers[END] = 404, {"error": "gone", "status": 404, "code": "RunNotFoundError"}
    assert follow(server, url).status == 404
    engine.answers[END] = 200, run("Completed", None)
    assert (follow(server, url).status, follow(server, url).json) == (200, None)
    assert len(engine.to(INVOKE)) == 1
    for wrong in (f"{url}x", url.replace("token=", "token=%C3%A9"), f"{PATH}?token=", PATH):
        assert (follow(server, wrong).status, engine.to("/v1/runs/x/end")) == (401, [])
    assert follow(server, f"{PATH}?token={client_of_tests.stream_token(RUN_ID, ['words'])}").status == 401


def test_a_key_starts_one_run_for_the_same_data(server: Server, engine: FakeEngine) -> None:
    for body in (b'{"user": "ada", "n": 1}', b'{"n":1,"user":"ada"}', b'{"n":2,"user":"ada"}'):
        assert post(server, body, idempotency_key="k").status == 200
    assert post(server, {"n": 1, "user": "ada"}, idempotency_key="l").status == 200
    ids = [started.json["id"] for started in engine.to(INVOKE)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_requests_that_start_no_run(server: Server, engine: FakeEngine) -> None:
    cases: list[tuple[int, Any, dict[str, str]]] = [
        (403, {"user": "eve"}, {}),
        (403, {"user": "ada"}, {"x_user": "eve"}),
        *((400, body, {}) for body in (b"[]", b"{", b"1", b"\xff", b"[" * 100_000)),
        (400, {"user": "ada"}, {"content_type": "text/plain"}),
        (400, {"user": "ada"}, {"content_type": "application/x-www-form-urlencoded"}),
        (413, b" " * (MAX_FORM_BYTES + 1), {}),
    ]
    for status, body, headers in cases:
        answer = post(server, body, **headers)
        assert answer.status == status, (body[:20], headers, answer.body)
        assert "message" in answer.json
    for method in ("PUT", "DELETE"):
        assert app_calls.request(method, server.origin + PATH, b"{}").status == 405
    assert engine.to(INVOKE) == []
    engine.answers[INVOKE] = 400, {"error": "the data is too deep", "status": 400, "code": "EventInvalidError"}
    answer = post(server, {"user": "ada"})
    assert (answer.status, answer.json) == (400, {"message": "the data is too deep"})


def test_an_engine_that_refuses_is_no_news_for_strangers(
    server: Server, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    engine.answers[INVOKE] = 404, {"error": f"nothing at {INVOKE}", "status": 404, "code": "FunctionNotFoundError"}
    answer = post(server, {"user": "ada"})
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert INVOKE.encode() not in answer.body


def test_a_run_goes_on_although_the_endpoint_cannot_wait(server: Server, engine: FakeEngine) -> None:
    def fail(request: Received) -> tuple[int, Any]:
        return 500, {"error": "a failing disk", "status": 500, "code": "DatabaseUnavailableError"}

    engine.answers[END] = fail
    answer = post(server, {"user": "ada"})
    assert (answer.status, answer.json["run_id"]) == (202, RUN_ID)
    assert b"disk" not in answer.body
