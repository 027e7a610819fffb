"""Requests and functions that are wrong: each is met with a clear error, and never with a traceback of ours."""

import http.client
from urllib.parse import urlsplit

import pytest

from ..fake_engine import FakeEngine
from . import app_calls
from .servers import Server


def assert_refused(answer: app_calls.Answer, status: int, code: str, *words: str) -> None:
    assert answer.status == status, answer.body
    error = answer.json
    assert set(error) == {"code", "message", "name"}
    assert error["code"] == code
    for word in words:
        assert word in error["message"]
    for trace in (b"Traceback", b"File ", b".py"):
        assert trace not in answer.body


@pytest.mark.parametrize(
    ("data", "fault"), [(b'"\xff"', "not encoded in UTF-8"), (b"[" * 100_000 + b"]" * 100_000, "nested too deeply")]
)
def test_undecodable_json_is_refused(server: Server, data: bytes, fault: str) -> None:
    for body in (
        b'{"ctx": {"run_id": "r"}, "event": {"name": "x", "data": {"a": %b}}}' % data,
        b'{"ctx": {"run_id": "r"}, "event": {"name": "x"}, "steps": {"a": {"data": %b}}}' % data,
    ):
        assert_refused(app_calls.call(server.url("dev"), "app-dev-plain-sync", body), 400, "body_invalid", fault)


def test_a_function_that_is_not_there(server: Server) -> None:
    answer = app_calls.call(server.url("dev"), "app-dev-gone", app_calls.call_body())
    assert_refused(answer, 500, "function_not_found", "'app-dev-gone'", "app-dev-plain-sync")
    assert answer.headers["x-inngest-no-retry"] == "false"


@pytest.mark.parametrize(("query", "name"), [("", "fnId"), ("?fnId=", "fnId"), ("?fnId=app-dev-plain-sync", "stepId")])
def test_missing_query_parameters_are_refused(server: Server, query: str, name: str) -> None:
    answer = app_calls.request("POST", server.url("dev") + query, app_calls.canonical(app_calls.call_body()))
    assert_refused(answer, 400, "query_param_missing", name)


@pytest.mark.parametrize("method", ["DELETE", "PATCH"])
def test_other_methods_are_405(server: Server, method: str) -> None:
    answer = app_calls.request(method, server.url("dev"), b"{}")
    assert answer.status == 405
    assert b"Traceback" not in answer.body


# -- functions


def call_mistaken(server: Server, kind: str, what: str, *, streamed: bool = False) -> app_calls.Answer:
    variant = "stream" if streamed else "dev"
    return app_calls.call(server.url(variant), f"app-{variant}-mistakes-{kind}", app_calls.call_body({"what": what}))


def assert_error(answer: app_calls.Answer, code: str, *words: str) -> None:
    """A function's error, which says where in the app's code, but shows none of ours."""
    assert answer.status == 500
    assert answer.headers["x-inngest-no-retry"] == "true"
    assert answer.json["code"] == code
    for word in words:
        assert word in answer.json["message"]
    assert b"src/durably/comm" not in answer.body


def test_output_that_json_cannot_express(server: Server, kind: str) -> None:
    answer = call_mistaken(server, kind, "output")
    assert_error(answer, "output_unserializable", "returned unserializable data", "object")
    assert not answer.json.get("stack")


# -- connections


def test_a_body_that_arrives_slowly(server: Server) -> None:
    """In two parts. The second is sent only once another request was answered."""
    body = app_calls.canonical(app_calls.call_body({"a": "b" * 5000}))
    parts = urlsplit(server.url("dev"))
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    connection.putrequest("POST", f"{parts.path}?fnId=app-dev-plain-sync&stepId=step")
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", str(len(body)))
    connection.endheaders(body[:2000])
    assert app_calls.request("GET", server.url("dev")).status == 200
    connection.send(body[2000:])
    assert connection.getresponse().status == 200
    connection.close()


def test_several_requests_on_one_connection(server: Server, engine: FakeEngine) -> None:
    """Each answer ends where its length says, so that the next can follow it."""
    parts = urlsplit(server.url("dev"))
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)  # which reconnects where the server closes
    body = app_calls.canonical(app_calls.call_body())
    for _ in range(3):
        for function, status in (("plain-sync", 200), ("steps-async", 206), ("gone", 500)):
            headers = {"content-type": "application/json"}
            connection.request("POST", f"{parts.path}?fnId=app-dev-{function}&stepId=step", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == status
            assert answer.headers.get("content-length", str(len(content))) == str(len(content))
    connection.close()
