"""CommHandler and its models by themselves: what no framework is needed to show."""

import asyncio
import base64
import json
import logging
import threading
import time
from typing import Any

import pytest

import durably
from durably import Client, Context, ContextSync, Function
from durably import app as app_module
from durably.comm import CommHandler, CommRequest, CommResponse, serve_options, syncer
from durably.comm.verification import CanonicalChecks
from durably.digital_ocean import serve as serve_digital_ocean
from durably.errors import (
    EngineNotConfiguredError,
    FunctionConfigInvalidError,
    SignatureError,
    SigningKeyMissingError,
    URLInvalidError,
)
from durably.protocol import signatures

from ..fake_engine import FakeEngine
from ..frameworks import app_calls

EVENT = durably.TriggerEvent(event="test/event")


def make_client(**options: Any) -> Client:
    return Client(**({"app_id": "app", "is_production": False} | options))


def make_function(client: Client, fn_id: str, **options: Any) -> Function[Any]:
    @client.create_function(fn_id=fn_id, trigger=EVENT, **options)
    def function(ctx: ContextSync) -> str:
        return ctx.run_id

    return function


def make_handler(client: Client | None = None, *functions: Function[Any], **options: Any) -> CommHandler:
    client = client or make_client()
    return CommHandler(
        client=client, framework="none", functions=functions or [make_function(client, "plain")], **options
    )


def make_request(body: bytes = b"", **options: Any) -> CommRequest:
    settings = {
        "body": body,
        "headers": {},
        "query_params": {},
        "raw_request": None,
        "request_url": "http://app.example.com/api/inngest",
    }
    return CommRequest(**(settings | options))


def make_call(function_id: str = "app-plain", **options: Any) -> CommRequest:
    query = {"fnId": function_id, "stepId": "step"}
    return make_request(app_calls.canonical(app_calls.call_body(run_id="01RUN")), query_params=query, **options)


# -- making one


@pytest.fixture
def outside_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a server: without it, this process is a test run."""
    monkeypatch.setattr(serve_options, "is_test_run", lambda: False)
    monkeypatch.setattr(app_module, "is_test_run", lambda: False)


@pytest.mark.usefixtures("outside_tests")
def test_production_needs_a_signing_key() -> None:
    with pytest.raises(SigningKeyMissingError, match="DURABLY_SIGNING_KEY"):
        make_handler(make_client(is_production=True, engine="https://engine.example.com"))


@pytest.mark.usefixtures("outside_tests")
@pytest.mark.parametrize("options", [{}, {"event_api_base_url": "https://engine.example.com"}])
def test_production_needs_an_engine(options: dict[str, str]) -> None:
    client = make_client(is_production=True, signing_key=app_calls.SIGNING_KEY, **options)
    with pytest.raises(EngineNotConfiguredError, match="DURABLY_ENGINE_URL"):
        make_handler(client)


def test_an_app_is_served_without_an_engine_in_a_test_run() -> None:
    handler = make_handler(make_client(is_production=True))
    response = handler.get_sync(make_request())
    assert response.status_code == 200
    assert handler.post_sync(make_call()).status_code == 401


def test_two_functions_with_one_id() -> None:
    client = make_client()
    with pytest.raises(FunctionConfigInvalidError, match='two functions have the id "app-twice"'):
        make_handler(client, make_function(client, "twice"), make_function(client, "twice"))


def test_non_function_is_refused() -> None:
    with pytest.raises(FunctionConfigInvalidError, match=r"client\.create_function"):
        make_handler(make_client(), lambda ctx: None)  # type: ignore[arg-type]


# -- its fronts


@pytest.mark.parametrize("is_production", [True, False])
def test_a_refused_sync_is_logged_in_production(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture, is_production: bool
) -> None:
    engine.answers["/fn/register"] = 401, {"error": "another signing key"}
    key = "signkey-test-0123456789abcdef"
    client = make_client(api_base_url=engine.origin, is_production=is_production, signing_key=key)
    handler = make_handler(client, serve_origin="https://app.example.com")
    assert handler.put_sync(make_request()).status_code == 401
    logged = f"{engine.origin}/ refused to sync app app: another signing key"
    assert (logged in caplog.text) == is_production


async def test_the_methods_by_name_with_and_without_a_loop(engine: FakeEngine) -> None:
    handler = make_handler(make_client(api_base_url=engine.origin))
    assert (await handler.post(make_call())).body == handler.post_sync(make_call()).body == b'"01RUN"'
    assert (await handler.put(make_request())).status_code == handler.put_sync(make_request()).status_code == 200
    assert (await handler.handle("get", make_request())).status_code == 200
    assert handler.get_sync(make_request()).status_code == 200
    refused = handler.handle_sync("DELETE", make_request())
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, POST, PUT")


def test_requests_of_an_authenticated_connection_are_not_signed() -> None:
    handler = make_handler(make_client(is_production=True, signing_key=app_calls.SIGNING_KEY))
    assert handler.post_sync(make_call()).status_code == 401
    assert handler.post_sync(make_call(is_connect=True)).status_code == 200


def test_a_fault_is_logged_in_full_and_named_in_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(durably.MiddlewareSync):
        def __init__(self, client: Client, raw_request: object) -> None:
            raise LookupError("private detail")

    with caplog.at_level(logging.ERROR):
        response = make_handler(make_client(middleware=[Faulty])).post_sync(make_call())
    assert response.status_code == 500
    assert b"private detail" not in response.body
    assert b"LookupError" in response.body
    assert "private detail" in caplog.text
    assert "Traceback" in caplog.text


# -- requests and responses


@pytest.mark.parametrize(
    ("error", "status", "no_retry", "retry_after"),
    [
        (None, 200, False, None),
        (durably.NonRetriableError("no"), 500, True, None),
        (durably.RetryAfterError("busy", "5m"), 500, False, "300"),
    ],
)
def test_a_response_has_the_values_of_its_headers(
    error: Exception | None, status: int, no_retry: bool, retry_after: str | None
) -> None:
    client = make_client()

    @client.create_function(fn_id="plain", trigger=EVENT)
    def plain(ctx: ContextSync) -> None:
        if error is not None:
            raise error

    response = make_handler(client, plain).post_sync(make_call())
    assert (response.status_code, response.no_retry, response.retry_after) == (status, no_retry, retry_after)
    assert (response.request_version, response.sdk_version) == (2, f"durably:v{app_module.VERSION}")
    assert CommResponse().request_version is None


# -- DigitalOcean's events, where they are not what they should be


class DigitalOceanContext:
    api_host = "https://faas.example.com"
    function_name = "/fn-1/package/app"


HTTP = {"method": "POST", "headers": {}, "queryString": "fnId=app-plain&stepId=step", "body": "", "path": ""}


@pytest.mark.parametrize(
    ("event", "word"),
    [
        ({}, "web function"),
        ({"http": None}, "web function"),
        ({"http": {"method": "GET"}}, "web: raw"),
        ({"http": {**HTTP, "headers": None}}, "http.headers"),
        ({"http": {**HTTP, "body": "***", "isBase64Encoded": True}}, "http.body"),
        ({"http": {**HTTP, "body": {"parsed": True}}}, "http.body"),
    ],
)
def test_platform_events_that_are_not_requests_are_refused(event: dict[str, Any], word: str) -> None:
    client = make_client()
    main = serve_digital_ocean(client, [make_function(client, "plain")])
    result = main(event, DigitalOceanContext())
    assert result["statusCode"] == 400
    assert word in result["body"]
    assert "x-inngest-sdk" in result["headers"]


def test_a_body_in_base64() -> None:
    client = make_client()
    main = serve_digital_ocean(client, [make_function(client, "plain")])
    body = base64.b64encode(app_calls.canonical(app_calls.call_body({"text": "☃"}))).decode()
    result = main({"http": {**HTTP, "body": body, "isBase64Encoded": True}}, DigitalOceanContext())
    assert (result["statusCode"], result["body"]) == (200, '"01RUN"')


@pytest.mark.parametrize(
    ("origin", "problem"),
    [
        ("app.example.com", "has no scheme; write https://app.example.com"),
        ("https://app.example.com/foo", "serve_path"),
        ("https://app.example.com?a=b", "serve_path"),
        ("ftp://app.example.com", "not a valid URL"),
    ],
)
def test_a_serve_origin_is_a_scheme_and_a_host(monkeypatch: pytest.MonkeyPatch, origin: str, problem: str) -> None:
    with pytest.raises(URLInvalidError, match=f"^serve_origin .*{problem}"):
        make_handler(make_client(), serve_origin=origin)
    monkeypatch.setenv("DURABLY_SERVE_ORIGIN", origin)
    with pytest.raises(URLInvalidError, match=f"^DURABLY_SERVE_ORIGIN .*{problem}"):
        make_handler(make_client())
    monkeypatch.setenv("DURABLY_SERVE_ORIGIN", "https://app.example.com/")
    make_handler(make_client())


def test_settings_are_read_when_the_handler_is_made(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine) -> None:
    monkeypatch.setenv("DURABLY_SERVE_ORIGIN", "https://public.example.com")
    monkeypatch.setenv("DURABLY_SERVE_PATH", "of/env")
    handler = make_handler(make_client(signing_key=app_calls.SIGNING_KEY, api_base_url=engine.origin))
    monkeypatch.delenv("DURABLY_SERVE_ORIGIN")
    monkeypatch.delenv("DURABLY_SERVE_PATH")
    signed = make_request(headers={"x-inngest-signature": app_calls.sign(b"")})
    inspected = json.loads(handler.get_sync(signed).body)
    assert (inspected["serve_origin"], inspected["serve_path"]) == ("https://public.example.com", "of/env")
    handler.put_sync(signed)
    assert engine.to("/fn/register")[0].json["url"] == "https://public.example.com/of/env"


# -- the cost of unsigned requests


def test_reencoded_body_is_verified_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = make_handler(make_client(is_production=True, signing_key=app_calls.SIGNING_KEY))
    canonical = app_calls.canonical(app_calls.call_body(run_id="01RUN"))
    request = make_call(headers={"x-inngest-signature": app_calls.sign(canonical)})
    request.body = json.dumps(json.loads(canonical), indent=1).encode()
    threads: list[threading.Thread] = []
    canonicalize = signatures.canonicalize

    def note(body: bytes) -> bytes | None:
        threads.append(threading.current_thread())
        return canonicalize(body)

    monkeypatch.setattr(signatures, "canonicalize", note)
    assert asyncio.run(handler.post(request)).status_code == 200
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("front", ["post", "post_sync"])
def test_signed_body_is_the_one_that_is_used(front: str) -> None:
    """A large integer that was changed on the way has the same canonical form."""
    client = make_client(is_production=True, signing_key=app_calls.SIGNING_KEY)
    seen: list[object] = []

    @client.create_function(fn_id="fn", trigger=EVENT)
    def fn(ctx: ContextSync) -> None:
        seen.append(ctx.event.data["n"])

    handler = CommHandler(client=client, framework="x", functions=[fn])
    text = app_calls.canonical(app_calls.call_body({"n": 1}, run_id="01RUN")).replace(b'"n":1', b'"n":9007199254740992')
    request = make_call("app-fn", headers={"x-inngest-signature": app_calls.sign(text)})
    request.body = text.replace(b"9007199254740992", b"9007199254740993")
    if front == "post":
        asyncio.run(handler.post(request))
    else:
        handler.post_sync(request)
    assert seen == [2**53]


def test_badly_signed_bodies_take_a_bounded_share_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    now, tried = 0.0, []
    monkeypatch.setattr(signatures, "canonicalize", lambda body: tried.append(now))
    checks = CanonicalChecks(clock=lambda: now, cpu_clock=lambda: 0.167 * len(tried))
    given = b"[1.50]", app_calls.sign(b""), (app_calls.SIGNING_KEY, None), time.time()
    for request in range(6000):  # ten a second
        now = request / 10
        with pytest.raises(SignatureError):
            checks.verify(*given)
    assert len(tried) * 0.167 < 0.06 * now


def test_too_many_badly_signed_bodies_are_refused_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now, cpu = 0.0, iter(range(100))
    checks = CanonicalChecks(clock=lambda: now, cpu_clock=lambda: float(next(cpu)))
    bad = b"[1.50]", app_calls.sign(b""), (app_calls.SIGNING_KEY, None), time.time()
    good = b"[1.50]", app_calls.sign(b"[1.5]"), (app_calls.SIGNING_KEY, None), time.time()
    for _ in range(20):
        assert checks.verify(*good).body == b"[1.5]"
    with pytest.raises(SignatureError):
        checks.verify(*bad)
    with pytest.raises(SignatureError, match="for some seconds"):
        checks.verify(*good)
    now = 20.0
    assert checks.verify(*good).key == app_calls.SIGNING_KEY


@pytest.mark.parametrize(
    ("result", "is_request"),
    [
        (app_calls.call_body(run_id="forged"), True),
        ({"url": "http://attacker.example.com"}, True),
        ({"ctxt": 1, "data": {"ctx": {"run_id": "forged"}, "url": "x"}}, False),
        ([{"ctx": {"run_id": "forged"}}], False),
        ("ctx", False),
    ],
    ids=["call", "sync", "nested", "list", "text"],
)
def test_no_result_of_a_function_is_signed_like_a_request(result: object, is_request: bool) -> None:
    """A client that makes a function return a call, and reads the answer, must not be able to send it as a call."""
    client = make_client(is_production=True, signing_key=app_calls.SIGNING_KEY)

    @client.create_function(fn_id="fn", trigger=EVENT)
    def fn(ctx: ContextSync) -> object:
        return result

    handler = CommHandler(client=client, framework="x", functions=[fn])
    body = app_calls.canonical(app_calls.call_body(run_id="01RUN"))
    request = make_call("app-fn", headers={"x-inngest-signature": app_calls.sign(body)})
    request.body = body
    answer = handler.post_sync(request)
    assert (answer.status_code, json.loads(answer.body)) == (200, result)
    assert answer.headers["x-durably-signature"]
    assert ("x-inngest-signature" not in answer.headers) is is_request
    for header in answer.headers.values():
        echoed = make_call("app-fn", headers={"x-inngest-signature": header})
        echoed.body = answer.body
        assert handler.post_sync(echoed).status_code in (400, 401)


@pytest.mark.parametrize("size", [signatures.MAX_CANONICAL_BYTES + 1, 8 * 1024 * 1024])
def test_a_large_badly_signed_body_is_only_hashed(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(signatures, "canonicalize", lambda body: pytest.fail("it was canonicalised"))
    handler = make_handler(make_client(is_production=True, signing_key=app_calls.SIGNING_KEY))
    request = make_request(b"[" + b"0," * (size // 2) + b"0]", headers={"x-inngest-signature": app_calls.sign(b"")})
    for response in (asyncio.run(handler.post(request)), handler.post_sync(request)):
        assert response.status_code == 401
        assert str(signatures.MAX_CANONICAL_BYTES) in json.loads(response.body)["message"]


def test_unsigned_syncs_in_production_make_one_request(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncer, "UNSIGNED_SECONDS", 3600.0)
    client = make_client(api_base_url=engine.origin, is_production=True, signing_key=app_calls.SIGNING_KEY)
    handler = make_handler(client, serve_origin="https://app.example.com")
    forged = make_request(headers={"x-inngest-server-kind": "dev"})
    assert handler.put_sync(forged).status_code == 400
    answers = [handler.put_sync(make_request()) for _ in range(20)]
    assert {(answer.status_code, answer.body) for answer in answers} == {(200, answers[0].body)}
    assert len(engine.to("/fn/register")) == 1
    signed = make_request(headers={"x-inngest-signature": app_calls.sign(b"")})
    assert handler.put_sync(signed).status_code == 200
    assert len(engine.to("/fn/register")) == 2


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ((200, {"ok": True, "modified": True, "app_id": "secret-fn"}), 200),
        ((400, {"error": "http://internal:8000 secret-fn"}), 400),
        ((502, ["secret-fn"]), 500),
    ],
)
def test_an_unsigned_sync_in_production_shows_nothing_of_the_engine(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture, reply: Any, status: int
) -> None:
    client = make_client(api_base_url=engine.origin, is_production=True, signing_key=app_calls.SIGNING_KEY)
    handler = make_handler(client, serve_origin="https://app.example.com")
    engine.answers["/fn/register"] = reply
    answer = handler.put_sync(make_request())
    assert answer.status_code == status
    assert json.loads(answer.body) == {"ok": True} if status == 200 else "the app's log" in answer.body.decode()
    for detail in ("secret-fn", "internal", engine.origin):
        assert detail not in answer.body.decode()
    assert {200: "", 400: "secret-fn", 500: "502"}[status] in caplog.text


def test_nor_where_the_engine_is_if_it_is_down(caplog: pytest.LogCaptureFixture) -> None:
    client = make_client(api_base_url="http://127.0.0.1:9", is_production=True, signing_key=app_calls.SIGNING_KEY)
    handler = make_handler(client, serve_origin="https://app.example.com")
    answer = handler.put_sync(make_request())
    assert (answer.status_code, b"127.0.0.1" in answer.body) == (500, False)
    assert "127.0.0.1:9" in caplog.text
    signed = handler.put_sync(make_request(headers={"x-inngest-signature": app_calls.sign(b"")}))
    assert b"127.0.0.1:9" in signed.body


def test_an_unsigned_sync_that_failed_is_tried_again_later(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncer, "UNSIGNED_SECONDS", 3600.0)
    client = make_client(api_base_url=engine.origin, is_production=True, signing_key=app_calls.SIGNING_KEY)
    handler = make_handler(client, serve_origin="https://app.example.com")
    engine.answers["/fn/register"] = 400, {"error": "no"}
    assert [handler.put_sync(make_request()).status_code for _ in range(3)] == [400, 429, 429]
    monkeypatch.setattr(syncer, "UNSIGNED_SECONDS", 0.0)
    handler.unsigned_syncs = syncer.UnsignedSyncs()
    engine.answers.clear()
    assert handler.put_sync(make_request()).status_code == 200
    assert len(engine.to("/fn/register")) == 2


@pytest.mark.parametrize(("app_id", "is_warned"), [("other", True), ("app", False)])
def test_functions_of_another_apps_client_are_reported(
    caplog: pytest.LogCaptureFixture, app_id: str, is_warned: bool
) -> None:
    make_handler(make_client(), make_function(make_client(app_id=app_id), "f"))
    assert bool([one for one in caplog.messages if f"serves the function '{app_id}-f'" in one]) is is_warned


@pytest.mark.parametrize("is_sync", [True, False])
def test_work_before_an_async_call_runs_on_its_loop(is_sync: bool) -> None:
    client = make_client()
    seen: list[object] = []

    async def prepare() -> None:
        seen.append(asyncio.get_running_loop())

    @client.create_function(fn_id="plain", trigger=EVENT)
    async def function(ctx: Context) -> None:
        seen.append(asyncio.get_running_loop())

    handler = make_handler(client, function, make_function(client, "sync"), before_async_call=prepare)
    for function_id in ("app-plain", "app-sync"):
        call = make_call(function_id)
        response = handler.post_sync(call) if is_sync else asyncio.run(_post(handler, call))
        assert response.status_code == 200
    assert len(seen) == 2
    assert seen[0] is seen[1]


async def _post(handler: CommHandler, call: CommRequest) -> CommResponse:
    return await handler.post(call)
