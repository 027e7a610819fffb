"""PUT: syncing an app, in band and out of band."""

from urllib.parse import parse_qs, urlsplit

import pytest

from ..fake_engine import FakeEngine
from . import app_calls
from .servers import Server

IN_BAND = {"x-inngest-sync-kind": "in_band"}
IN_BAND_BODY = app_calls.canonical({"url": "https://app.example.com/some/path?ignored=1"})


def app_url(server: Server, variant: str) -> str:
    """The URL with which an app syncs its functions, if nothing else is set."""
    if server.framework == "digitalocean" and variant == "default":
        return f"{server.origin}/api/v1/web/fn-00000000/default/app"
    return server.url(variant)


# -- in band


def signed() -> dict[str, str]:
    """A current signature: one that is made when the module is imported may be too old when the test runs."""
    return {"x-inngest-signature": app_calls.sign(b"{}")}


@pytest.mark.parametrize("key", [app_calls.SIGNING_KEY, app_calls.FALLBACK_KEY])
def test_in_band_answers_with_the_whole_configuration(server: Server, engine: FakeEngine, key: str) -> None:
    headers = {**IN_BAND, "x-inngest-signature": app_calls.sign(IN_BAND_BODY, key)}
    answer = app_calls.request("PUT", server.url("cloud"), IN_BAND_BODY, headers)
    assert answer.status == 200
    assert answer.headers["x-inngest-sync-kind"] == "in_band"
    assert app_calls.is_signed(answer, key)
    synced = answer.json
    assert (synced["app_id"], synced["appVersion"], synced["env"]) == ("app-cloud", "1.2.3", "my-env")
    assert (synced["framework"], synced["sdk_language"]) == (server.framework, "py")
    assert synced["inspection"]["authentication_succeeded"] is True
    assert synced["url"] == "https://app.example.com/cloud/api/inngest"  # the path is the one it is served at
    functions = {function["id"]: function for function in synced["functions"]}
    assert len(functions) == len(synced["functions"]) > 20
    assert "app-cloud-plain-async-failure" in functions
    plain = functions["app-cloud-plain-sync"]
    assert plain["triggers"] == [{"event": "test/event"}]
    assert plain["steps"]["step"]["retries"] == {"attempts": 2}
    runtime = urlsplit(plain["steps"]["step"]["runtime"]["url"])
    assert parse_qs(runtime.query) == {"fnId": ["app-cloud-plain-sync"], "stepId": ["step"]}
    assert engine.received == []


def test_in_band_where_it_is_switched_off_is_out_of_band(server: Server, engine: FakeEngine) -> None:
    headers = {**IN_BAND, "x-inngest-signature": app_calls.sign(IN_BAND_BODY)}
    answer = app_calls.request("PUT", server.url("no-in-band"), IN_BAND_BODY, headers)
    assert answer.status == 200
    assert answer.headers["x-inngest-sync-kind"] == "out_of_band"
    assert len(engine.to("/fn/register")) == 1


# -- out of band


@pytest.mark.parametrize("variant", ["default", "dev"])
def test_out_of_band_registers_the_app(server: Server, engine: FakeEngine, variant: str) -> None:
    engine.answers["/fn/register"] = 200, {"ok": True, "modified": True}
    answer = app_calls.request("PUT", server.url(variant), b"")
    assert (answer.status, answer.json) == (200, {"ok": True, "modified": True})
    assert answer.headers["x-inngest-sync-kind"] == "out_of_band"
    [received] = engine.to("/fn/register")
    url = app_url(server, variant)
    sync = received.json
    assert received.method == "POST"
    assert (sync["appName"], sync["url"], sync["framework"]) == (f"app-{variant}", url, server.framework)
    assert (sync["deployType"], sync["v"], sync["sdk"].partition(":v")[0]) == ("ping", "0.1", "durably")
    plain = next(function for function in sync["functions"] if function["id"] == f"app-{variant}-plain-async")
    assert plain["steps"]["step"]["runtime"] == {
        "type": "http",
        "url": f"{url}?fnId=app-{variant}-plain-async&stepId=step",
    }
    assert "authorization" not in received.headers
    assert received.headers["x-inngest-framework"] == server.framework
    assert received.headers["x-inngest-sdk"] == answer.headers["x-inngest-sdk"] == received.headers["user-agent"]
    assert received.headers["x-inngest-req-version"] == "2"


def test_out_of_band_in_production_proves_itself(server: Server, engine: FakeEngine) -> None:
    answer = app_calls.request("PUT", server.url("origin"), b"{}", signed())
    assert answer.status == 200
    [received] = engine.to("/fn/register")
    assert received.headers["authorization"] == app_calls.bearer(app_calls.SIGNING_KEY)
    assert received.headers["x-inngest-env"] == "my-env"
    assert received.json["appVersion"] == "1.2.3"


def test_unsigned_syncs_can_be_refused(server: Server, engine: FakeEngine) -> None:
    answer = app_calls.request("PUT", server.url("strict"), b"")
    assert (answer.status, answer.json["code"]) == (401, "header_missing")
    assert engine.received == []
    answer = app_calls.request("PUT", server.url("strict"), b"", {"x-inngest-signature": app_calls.sign(b"")})
    assert answer.status == 200


@pytest.mark.parametrize(
    ("variant", "url"),
    [
        ("public", "https://public.example.com/behind/proxy"),
        ("by-env", "https://env.example.com/by-env/from.env"),
    ],
)
def test_synced_url_can_be_set(server: Server, engine: FakeEngine, variant: str, url: str) -> None:
    app_calls.request("PUT", server.url(variant), b"")
    assert engine.to("/fn/register")[0].json["url"] == url


# -- what goes wrong


def test_an_engine_that_is_away(server: Server) -> None:
    """Only a signed request learns where the engine is."""
    answer = app_calls.request("PUT", server.url("away"), b"")
    assert answer.status == 500
    assert "127.0.0.1:9" not in answer.json["message"]
    answer = app_calls.request("PUT", server.url("away"), b"", {"x-inngest-signature": app_calls.sign(b"")})
    assert answer.status == 500
    assert answer.json["message"] == "cannot reach http://127.0.0.1:9: connection refused"


@pytest.mark.parametrize(
    ("status", "refusal", "answered"),
    [(400, {"error": "function plain: no such trigger\n"}, 400), (502, b"<html>bad gateway</html>", 500)],
)
def test_a_refusal_of_the_engine_is_returned(
    server: Server, engine: FakeEngine, status: int, refusal: object, answered: int
) -> None:
    engine.answers["/fn/register"] = status, refusal
    answer = app_calls.request("PUT", server.url("dev"), b"")
    assert (answer.status, answer.json["code"]) == (answered, "registration_failed")
    assert ("no such trigger" if status == 400 else "502") in answer.json["message"]
