"""Unauthenticated requests must not redirect an app's calls, run its functions, or cost much."""

import http.client
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest

from ..fake_engine import FakeEngine
from ..waiting import eventually
from . import app_calls
from .servers import Server, django_on_werkzeug
from .variants import ORIGIN, PATHS

FORGED = {
    "host": "attacker.example",
    "x-forwarded-host": "attacker.example",
    "x-forwarded-proto": "https",
    "x-forwarded-prefix": "/attack",
    "forwarded": "host=attacker.example;proto=https",
    "x-original-host": "attacker.example",
}
FORGED_BODY = app_calls.canonical({"url": "https://attacker.example/api/inngest"})
MAX_BYTES = 36 * 1024 * 1024


def has_platform_url(server: Server) -> bool:
    """These platforms pass the URL to their functions, not in a header."""
    return server.framework in ("digitalocean", "aws-lambda")


# -- syncs


@pytest.mark.parametrize("body", [b"", FORGED_BODY])
@pytest.mark.parametrize("headers", [FORGED, {**FORGED, "x-inngest-server-kind": "cloud"}])
def test_an_unsigned_sync_in_production_takes_no_url_from_the_request(
    server: Server, engine: FakeEngine, headers: dict[str, str], body: bytes
) -> None:
    if has_platform_url(server):
        pytest.skip("the platform supplies the URL")
    answer = app_calls.request("PUT", server.url("cloud"), body, headers)
    assert answer.status in (400, 401)
    if answer.headers.get("x-inngest-sdk"):  # Django itself refuses hosts that its settings do not name
        for word in ("serve_origin", "DURABLY_SERVE_ORIGIN", "durably sync"):
            assert word in answer.json["message"]
    assert engine.received == []


def test_an_unsigned_sync_in_production_registers_the_configured_url(server: Server, engine: FakeEngine) -> None:
    app_calls.request("PUT", server.url("origin") + "?deployId=forged", FORGED_BODY, FORGED)
    [received] = engine.to("/fn/register")
    assert received.json["url"] == ORIGIN + PATHS["origin"]
    assert "attack" not in received.body.decode()
    assert received.query == {}


@pytest.mark.parametrize("body", [b"", FORGED_BODY])
def test_signed_out_of_band_sync_takes_no_url_from_the_request(server: Server, engine: FakeEngine, body: bytes) -> None:
    """Its signature does not cover the Host, and an attacker who saw it may repeat it."""
    if has_platform_url(server):
        pytest.skip("the platform supplies the URL")
    answer = app_calls.request(
        "PUT", server.url("cloud"), body, {**FORGED, "x-inngest-signature": app_calls.sign(body)}
    )
    assert (answer.status, answer.json["code"]) == (400, "serve_origin_missing")
    assert engine.received == []


def test_a_signed_sync_may_name_its_deployment(server: Server, engine: FakeEngine) -> None:
    signature = {"x-inngest-signature": app_calls.sign(b"{}")}
    assert app_calls.request("PUT", server.url("origin") + "?deployId=d", b"{}", signature).status == 200
    assert engine.to("/fn/register")[0].query == {"deployId": ["d"]}


def test_a_badly_signed_sync_in_production_is_refused(server: Server, engine: FakeEngine) -> None:
    signature = {"x-inngest-signature": app_calls.sign(b"{}", app_calls.WRONG_KEY)}
    answer = app_calls.request("PUT", server.url("origin"), b"{}", signature)
    assert (answer.status, answer.json["code"]) == (401, "sig_verification_failed")
    assert engine.received == []


@pytest.mark.parametrize("host", ["[", "a b", "x:port"])
def test_invalid_host_is_refused(server: Server, engine: FakeEngine, host: str) -> None:
    """By the app or its server, unless the framework has a better one; calls need none."""
    status = _raw(server, "PUT", server.url("dev"), {"host": host})
    assert status < 500
    assert _raw(server, "POST", server.url("dev"), {"host": host}) < 500
    registered = [received.json["url"].partition("/dev/")[0] for received in engine.to("/fn/register")]
    assert registered == ([server.origin] if status == 200 else [])


def _raw(server: Server, method: str, url: str, headers: dict[str, str]) -> int:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(urlsplit(server.origin).netloc, timeout=10)
    connection.putrequest(method, f"{parts.path}?fnId=app-dev-plain-sync&stepId=step", skip_host=True)
    body = app_calls.canonical(app_calls.call_body())
    for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
        connection.putheader(name, value.encode())
    connection.endheaders(body)
    status = connection.getresponse().status
    connection.close()
    return status


# -- calls


@pytest.mark.parametrize(
    "ctx", [{"function_slug": "app-cloud-plain-sync"}, {"function_slug": "app-cloud-steps-sync", "step_id": "x"}]
)
def test_a_call_for_another_function_or_step_is_refused(server: Server, ctx: dict[str, Any]) -> None:
    body = app_calls.canonical(app_calls.call_body(**ctx))
    url = server.url("cloud") + "?fnId=app-cloud-steps-sync&stepId=step"
    answer = app_calls.request("POST", url, body, {"x-inngest-signature": app_calls.sign(body)})
    assert (answer.status, answer.json["code"]) == (400, "call_mismatch")


PAGES = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://["},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-origin"},
]


@pytest.mark.parametrize("headers", [*PAGES, {"content-type": "text/plain;charset=utf-8"}])
def test_pages_call_nothing_in_development(server: Server, headers: dict[str, str]) -> None:
    url = server.url("dev") + "?fnId=app-dev-plain-sync&stepId=step"
    answer = app_calls.request("POST", url, app_calls.canonical(app_calls.call_body()), headers)
    assert (answer.status, answer.json["code"]) == (403, "browser_refused")


@pytest.mark.parametrize("headers", PAGES)
def test_pages_sync_nothing_in_development(server: Server, engine: FakeEngine, headers: dict[str, str]) -> None:
    answer = app_calls.request("PUT", server.url("dev"), b"", headers)
    assert (answer.status, answer.json["code"]) == (403, "browser_refused")
    assert engine.received == []


@pytest.mark.parametrize("headers", PAGES)
def test_pages_may_inspect_in_development(server: Server, headers: dict[str, str]) -> None:
    assert app_calls.request("GET", server.url("dev"), None, headers).status == 200


def test_a_deeply_nested_call_has_one_clear_answer(server: Server) -> None:
    body = b'{"ctx": ' + b"[" * 100_000
    answer = app_calls.request("POST", server.url("dev") + "?fnId=app-dev-plain-sync&stepId=step", body)
    assert (answer.status, answer.json["code"]) == (400, "body_invalid")
    data = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    body = b'{"ctx":{"run_id":"r"},"event":{"name":"a","data":' + data + b'},"events":[],"steps":{}}'
    answer = app_calls.request("POST", server.url("dev") + "?fnId=app-dev-plain-sync&stepId=step", body)
    assert (answer.status, answer.json["code"]) == (400, "body_invalid")
    assert "nested too deeply" in answer.json["message"]


# -- large bodies


def _open(server: Server, *headers: tuple[str, str]) -> socket.socket:
    parts = urlsplit(server.url("cloud"))
    connection = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=20)
    lines = [f"POST {parts.path}?fnId=app-cloud-plain-sync&stepId=step HTTP/1.1", f"host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers] + ["content-type: application/json", "", ""]
    connection.sendall("\r\n".join(lines).encode())
    return connection


def _status(connection: socket.socket) -> int:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status


READS_BEFORE = {
    "django-asgi": "Django reads the body, to a file, before any view",
    "digitalocean": "the platform does",
    "lambda": "the platform does",
    "lambda-awslambdaric": "the platform does",
    "google-cloud": "functions-framework does, before each answer",
}


@pytest.mark.parametrize("length", [MAX_BYTES + 1, 2 * 10**9])
def test_a_body_declared_too_large_is_refused_before_it_is_sent(server: Server, length: int) -> None:
    if reason := READS_BEFORE.get(server.name):
        pytest.skip(reason)
    with _open(server, ("content-length", str(length))) as connection:
        assert _status(connection) == 413


def test_a_body_of_unknown_length_is_refused_at_the_limit(server: Server) -> None:
    """While its sender still has more to send."""
    if reason := READS_BEFORE.get(server.name):
        pytest.skip(reason)
    if server.name in ("django-wsgi", "wsgi-wsgiref", "flask-werkzeug"):
        pytest.skip("bodies without a length are empty to it")
    data = b"x" * 65536
    with _open(server, ("transfer-encoding", "chunked")) as connection:
        try:
            for _ in range(MAX_BYTES // len(data) + 2):
                connection.sendall(b"10000\r\n" + data + b"\r\n")
            assert _status(connection) == 413
        except (ConnectionError, http.client.RemoteDisconnected):
            pass  # A server may close the connection on what it does not read, before its answer is read.


def test_too_large_body_is_refused_with_a_reason(server: Server) -> None:
    answer = app_calls.request("POST", server.url("cloud"), b"x" * (MAX_BYTES + 1))
    assert answer.status == 413
    assert json.loads(answer.body)["code"] == "body_too_large"


NO_CHUNKS = ("django-wsgi", "wsgi-wsgiref")
"""Servers (wsgiref) that do not decode chunked bodies."""


def test_a_chunked_body_is_read_or_refused_with_the_reason(server: Server) -> None:
    if has_platform_url(server):
        pytest.skip("the platform reads the body")
    body = app_calls.canonical(app_calls.call_body())
    with _open(server, ("transfer-encoding", "chunked"), ("x-inngest-signature", app_calls.sign(body))) as connection:
        connection.sendall(b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (9, body[:9], len(body) - 9, body[9:]))
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        text = answer.read().decode()
    if server.name in NO_CHUNKS:
        assert (answer.status, json.loads(text)["code"]) == (411, "body_length_missing")
        assert "Content-Length" in text
    else:
        assert answer.status == 200, text


def test_django_reads_a_chunked_body_if_its_wsgi_server_decodes_it(engine: FakeEngine) -> None:
    """gunicorn and Werkzeug do; the other tests run Django on wsgiref."""
    with django_on_werkzeug(engine.origin) as origin:
        test_a_chunked_body_is_read_or_refused_with_the_reason(
            Server("django-werkzeug", origin, "django", is_async=False)
        )


# -- bodies that end too early, or are not what their headers say


def test_a_body_with_wrong_chunks_is_refused_without_a_traceback(server: Server) -> None:
    """By the app or its server. The request is not signed, so any client could fill the log."""
    if server.framework == "aiohttp":
        pytest.skip("if they arrive after the head, aiohttp's parser in C leaves the body open until the client leaves")
    with _open(server, ("transfer-encoding", "chunked")) as connection:
        connection.sendall(b"zz\r\n")
        assert 400 <= _status(connection) < 500


def test_a_client_that_leaves_within_a_body_causes_no_traceback(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    if server.name != "fastapi-uvicorn":
        pytest.skip("the server or the framework handles it")
    with _open(server, ("content-length", "1000")) as connection:
        connection.sendall(b"{")
    eventually(
        lambda: any("body cannot be read" in line or "Exception" in line for line in caplog.messages),
        "the disconnect is logged",
    )
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


IN_OTHER_PROCESSES = ("flask-gunicorn", "lambda-awslambdaric", "google-cloud")


def test_an_id_in_a_call_forges_no_line_of_the_log(server: Server, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    if server.name in IN_OTHER_PROCESSES:
        pytest.skip("its log is in another process")
    run_id = "01RUN\nforged \x1b[31m"
    assert app_calls.call(server.url("dev"), f"app-dev-logs-{kind}", app_calls.call_body(run_id=run_id)).status == 200
    [line] = [line for line in caplog.messages if "line of the function" in line]
    assert line == f"[app-dev-logs-{kind} 01RUN\\nforged \\x1b[31m] line of the function"
