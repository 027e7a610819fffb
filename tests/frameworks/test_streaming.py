"""Streamed answers: status 201, spaces while the call runs, then the whole answer as one JSON object."""

import http.client
import json
import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit

import django
import pytest

from ..fake_engine import FakeEngine
from . import app_calls
from .servers import Server


@pytest.fixture(autouse=True)
def _streams(server: Server) -> None:
    if not server.streams:
        pytest.skip("the platform buffers answers")


@pytest.fixture
def data(engine: FakeEngine) -> dict[str, str]:
    return {"engine": engine.origin, "name": uuid.uuid4().hex}


class Reading:
    """A call whose answer is read as it arrives."""

    def __init__(self, url: str, function_id: str, data: dict[str, str]) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.netloc, timeout=10)
        path = f"{parts.path}?fnId={function_id}&stepId=step"
        headers = {"content-type": "application/json"}
        self._connection.request("POST", path, app_calls.canonical(app_calls.call_body(data)), headers)
        self.response = self._connection.getresponse()

    def read(self, length: int) -> bytes:
        return self.response.read(length)

    def hang_up(self) -> None:
        self.response.close()
        self._connection.close()


@pytest.fixture
def reading() -> Iterator[list[Reading]]:
    opened: list[Reading] = []
    yield opened
    for one in opened:
        one.hang_up()


def test_the_answer_comes_in_an_envelope(server: Server, kind: str) -> None:
    answer = app_calls.call(server.url("stream"), f"app-stream-plain-{kind}", app_calls.call_body({"text": "☃"}))
    assert answer.status == 201
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-inngest-sdk"].startswith("durably:v")
    assert answer.body.startswith(b" ")
    assert set(answer.json) == {"status", "headers", "body"}
    inner = answer.inner
    assert (inner.status, inner.json["data"]) == (200, {"text": "☃"})
    assert inner.headers["x-inngest-sdk"] == answer.headers["x-inngest-sdk"]
    assert inner.headers["x-inngest-framework"] == server.framework
    assert "function;dur=" in inner.headers["server-timing"]


def test_spaces_arrive_while_the_call_runs(
    server: Server, engine: FakeEngine, kind: str, data: dict[str, str], reading: list[Reading]
) -> None:
    call = Reading(server.url("stream"), f"app-stream-held-{kind}", data)
    reading.append(call)
    assert call.response.status == 201
    engine.wait_for_report(data["name"], "started")
    assert call.read(5) == b" " * 5
    engine.open_gate(data["name"])
    rest = json.loads(call.response.read())
    assert (rest["status"], rest["body"]) == (200, '"let go"')


def test_steps_and_errors_come_inside_too(server: Server, kind: str) -> None:
    url = server.url("stream")
    inner = app_calls.call(url, f"app-stream-steps-{kind}", app_calls.call_body()).inner
    assert inner.ops == [("StepRun", "one")]
    inner = app_calls.call(url, f"app-stream-raises-{kind}", app_calls.call_body({"how": "plain"})).inner
    assert (inner.status, inner.json["name"], inner.headers["x-inngest-no-retry"]) == (500, "OddError", "false")
    inner = app_calls.call(url, f"app-stream-raises-{kind}", app_calls.call_body({"how": "retry after"})).inner
    assert "retry-after" in inner.headers
    inner = app_calls.call(url, f"app-stream-mistakes-{kind}", app_calls.call_body({"what": "output"})).inner
    assert (inner.status, inner.json["code"]) == (500, "output_unserializable")


def test_middleware_runs_inside_of_the_stream(server: Server, kind: str) -> None:
    answer = app_calls.call(
        server.url("stream"), f"app-stream-middle-{kind}", app_calls.call_body(), headers={"x-name": "Ada"}
    )
    assert (answer.inner.json["sync"]["name"], answer.inner.json["async"]["name"]) == ("Ada", "Ada")


@pytest.mark.parametrize("key", [app_calls.SIGNING_KEY, app_calls.FALLBACK_KEY])
def test_the_inner_answer_is_signed(server: Server, kind: str, key: str) -> None:
    answer = app_calls.call(
        server.url("stream-cloud"), f"app-stream-cloud-plain-{kind}", app_calls.call_body(), key=key
    )
    assert "x-inngest-signature" not in answer.headers  # what would be signed is not yet known
    assert app_calls.is_signed(answer.inner, key)


def test_refusals_are_not_streamed(server: Server) -> None:
    url = server.url("stream-cloud")
    assert app_calls.call(url, "app-stream-cloud-plain-sync", app_calls.call_body()).status == 401
    assert app_calls.call(url, "gone", app_calls.call_body(), key=app_calls.SIGNING_KEY).status == 500
    assert app_calls.call(url, "app-stream-cloud-plain-sync", b"{", key=app_calls.SIGNING_KEY).status == 400
    assert app_calls.request("GET", url).status == 200


def test_a_client_that_hangs_up_ends_the_job(
    server: Server, engine: FakeEngine, data: dict[str, str], reading: list[Reading]
) -> None:
    if server.name == "django-asgi" and django.VERSION < (5, 0):
        pytest.skip("before 5.0 Django does not notice")
    call = Reading(server.url("stream"), "app-stream-endless", data)
    engine.wait_for_report(data["name"], "started")
    call.hang_up()
    engine.wait_for_report(data["name"], "cancelled")
    assert app_calls.call(server.url("stream"), "app-stream-plain-async", app_calls.call_body()).inner.status == 200
