"""GET: what an app says of itself."""

from collections.abc import Callable

import pytest

from durably import Client

from . import app_calls
from .functions import make_functions
from .servers import Server

UNSIGNED = {
    "authentication_succeeded": None,
    "capabilities": {"in_band_sync": "v1", "trust_probe": "v1"},
    "function_count": len(make_functions(Client(app_id="app", is_production=False))),
    "has_event_key": True,
    "has_signing_key": True,
    "has_signing_key_fallback": True,
    "mode": "cloud",
    "schema_version": "2024-05-24",
}


def test_unsigned_inspection_shows_no_configuration(server: Server) -> None:
    answer = app_calls.request("GET", server.url("cloud"))
    assert answer.status == 200
    assert answer.json == UNSIGNED
    assert "x-inngest-signature" not in answer.headers


KEYS = {"signing_key_hash": app_calls.SIGNING_KEY, "signing_key_fallback_hash": app_calls.FALLBACK_KEY}


@pytest.mark.parametrize("key", [app_calls.SIGNING_KEY, app_calls.FALLBACK_KEY])
def test_signed_says_all_but_secrets(server: Server, key: str) -> None:
    answer = app_calls.request("GET", server.url("cloud"), headers={"x-inngest-signature": app_calls.sign(b"", key)})
    assert answer.status == 200
    said = answer.json
    assert {name: said[name] for name in UNSIGNED if name != "authentication_succeeded"} == {
        name: value for name, value in UNSIGNED.items() if name != "authentication_succeeded"
    }
    assert said["authentication_succeeded"] is True
    assert (said["app_id"], said["env"], said["framework"]) == ("app-cloud", "my-env", server.framework)
    assert (said["sdk_language"], said["mode"]) == ("py", "cloud")
    assert len({said["event_key_hash"], said["signing_key_hash"], said["signing_key_fallback_hash"]}) == 3
    assert app_calls.is_signed(answer, key)


def test_inspection_does_not_show_the_token_of_the_engines_api(server: Server) -> None:
    """The whole hash of a signing key is that token, and everybody between engine and app reads the inspection."""
    headers = {"x-inngest-signature": app_calls.sign(b"")}
    answer = app_calls.request("GET", server.url("cloud"), headers=headers)
    tokens = {name: app_calls.bearer(key).rpartition("-")[2] for name, key in KEYS.items()}
    assert {name: answer.json[name] for name in KEYS} == {name: token[:12] for name, token in tokens.items()}
    body = app_calls.canonical({"url": server.url("cloud")})
    sync = {"x-inngest-signature": app_calls.sign(body), "x-inngest-sync-kind": "in_band"}
    synced = app_calls.request("PUT", server.url("cloud"), body, sync)
    assert synced.json["inspection"]["authentication_succeeded"] is True
    assert not any(token.encode() in answer.body + synced.body for token in tokens.values())


@pytest.mark.parametrize(
    "sign",
    [
        lambda: app_calls.sign(b"", app_calls.WRONG_KEY),
        lambda: app_calls.sign(b"else"),
        lambda: "t=1&s=2",
        lambda: "nonsense",
    ],
    ids=["wrong key", "other body", "too old", "malformed"],
)
def test_badly_signed_says_no_more_than_unsigned(server: Server, sign: Callable[[], str]) -> None:
    answer = app_calls.request("GET", server.url("cloud"), headers={"x-inngest-signature": sign()})
    assert answer.status == 200
    assert answer.json == {**UNSIGNED, "authentication_succeeded": False}
    assert "x-inngest-signature" not in answer.headers


def test_inspection_shows_development_mode(server: Server) -> None:
    answer = app_calls.request("GET", server.url("dev"))
    assert answer.status == 200
    assert (answer.json["mode"], answer.json["has_signing_key"]) == ("dev", False)


@pytest.mark.parametrize(("variant", "kind"), [("cloud", "dev"), ("dev", "cloud")])
def test_engine_of_the_other_kind_gets_no_inspection(server: Server, variant: str, kind: str) -> None:
    answer = app_calls.request("GET", server.url(variant), headers={"x-inngest-server-kind": kind})
    assert (answer.status, answer.json) == (403, {})


def test_settings_of_the_endpoint_are_shown(server: Server) -> None:
    signed = {"x-inngest-signature": app_calls.sign(b"")}
    assert (
        app_calls.request("GET", server.url("dev-keys"), headers=signed).json["serve_path"] == "/dev-keys/api/inngest"
    )
