"""Production mode: nothing is done for a request that is not signed, and nothing secret is shown."""

import json
import time

import pytest

from .. import wire
from ..wire import FALLBACK_KEY, SIGNING_KEY, WRONG_KEY
from .app_under_test import App

_STALE = 6 * 60


def test_a_signed_call_is_answered_and_the_answer_signed(cloud_app: App) -> None:
    query = {"fnId": "conformance-plain", "stepId": "step"}
    body = wire.canonical(wire.call_body(wire.event("conformance/plain", {"n": 1}, id="e", ts=1)))
    answer = cloud_app.post(query, body, {"x-inngest-signature": wire.sign(body)})
    assert answer.output["data"] == {"n": 1}
    assert wire.is_signed(answer.body, answer.headers.get("x-inngest-signature"))


def test_the_fallback_key_is_accepted_too(cloud_app: App) -> None:
    body = wire.canonical(wire.call_body(wire.event("conformance/plain", {"n": 1}, id="e", ts=1)))
    query = {"fnId": "conformance-plain", "stepId": "step"}
    answer = cloud_app.post(query, body, {"x-inngest-signature": wire.sign(body, FALLBACK_KEY)})
    assert answer.output["data"] == {"n": 1}
    assert wire.is_signed(answer.body, answer.headers.get("x-inngest-signature"), FALLBACK_KEY)


def test_reencoded_body_is_still_verified(cloud_app: App) -> None:
    value = wire.call_body(wire.event("conformance/plain", {"name": "Zoë", "n": 1.5}, id="e", ts=1))
    signature = wire.sign(wire.canonical(value))
    query = {"fnId": "conformance-plain", "stepId": "step"}
    answer = cloud_app.post(query, json.dumps(value, indent=2).encode(), {"x-inngest-signature": signature})
    assert answer.output["data"] == {"name": "Zoë", "n": 1.5}


def _signatures() -> dict[str, str | None]:
    body = _BODY
    return {
        "none": None,
        "wrong key": wire.sign(body, WRONG_KEY),
        "other body": wire.sign(body + b" ", SIGNING_KEY),
        "too old": wire.sign(body, SIGNING_KEY, int(time.time()) - _STALE),
        "malformed": "s=abc",
        "empty": "t=&s=",
    }


_BODY = wire.canonical(wire.call_body(wire.event("conformance/send", id="e", ts=1)))


@pytest.mark.parametrize("kind", _signatures())
def test_a_call_that_is_not_signed_well_is_refused_and_nothing_runs(cloud_app: App, kind: str) -> None:
    if kind == "too old":
        cloud_app.excuse("inngest", "it accepts signatures of any age")
    signature = _signatures()[kind]
    headers = {} if signature is None else {"x-inngest-signature": signature}
    answer = cloud_app.post({"fnId": "conformance-send", "stepId": "step"}, _BODY, headers)
    assert answer.inner.status == 401
    assert cloud_app.engine.received == []


def test_signed_trust_probe_is_answered(cloud_app: App) -> None:
    cloud_app.excuse("inngest-npm", "it refuses the signature of an empty body")
    query = {"fnId": "conformance-plain", "stepId": "step", "probe": "trust"}
    answer = cloud_app.post(query, b"", {"x-inngest-signature": wire.sign(b"")})
    assert answer.status == 200
    assert wire.is_signed(answer.body, answer.headers.get("x-inngest-signature"))
    assert cloud_app.post(query, b"", {"x-inngest-signature": wire.sign(b"", WRONG_KEY)}).inner.status >= 400


def test_in_band_sync_answers_with_the_whole_configuration(cloud_app: App) -> None:
    body = wire.canonical({"url": cloud_app.url})
    headers = {"x-inngest-signature": wire.sign(body), "x-inngest-sync-kind": "in_band"}
    answer = cloud_app.put(body, headers | {"x-inngest-server-kind": "cloud"})
    assert answer.status == 200, answer.body
    assert answer.headers["x-inngest-sync-kind"] == "in_band"
    assert wire.is_signed(answer.body, answer.headers.get("x-inngest-signature"))
    sync = answer.json
    assert sync["app_id"] == "conformance"
    assert sync["url"] == cloud_app.url
    assert "conformance-plain" in {function["id"] for function in sync["functions"]}
    assert sync["inspection"]["schema_version"] == "2024-05-24"
    assert sync["sdk_language"]
    assert sync["sdk_version"]
    assert cloud_app.engine.received == []


@pytest.mark.parametrize("key", [None, WRONG_KEY])
def test_in_band_sync_needs_a_signature(cloud_app: App, key: str | None) -> None:
    body = wire.canonical({"url": cloud_app.url})
    signature = {"x-inngest-signature": wire.sign(body, key)} if key else {}
    answer = cloud_app.put(body, signature | {"x-inngest-sync-kind": "in_band"})
    assert answer.status == 401
    assert b"functions" not in answer.body


def test_out_of_band_sync_is_authorised_with_the_hashed_key(cloud_app: App) -> None:
    answer = cloud_app.put(headers={"x-inngest-server-kind": "cloud"})
    assert answer.status == 200, answer.body
    (request,) = cloud_app.engine.to("/fn/register")
    assert request.headers["authorization"] in wire.BEARERS


def test_a_sync_for_an_engine_of_the_other_mode_is_refused(cloud_app: App) -> None:
    answer = cloud_app.put(headers={"x-inngest-server-kind": "dev"})
    cloud_app.excuse("inngest-npm", "it leaves it to the engine to refuse")
    assert answer.status == 400
    assert answer.json["code"] == "server_kind_mismatch"


def test_a_run_too_large_for_a_call_is_fetched_with_the_hashed_key(cloud_app: App) -> None:
    trigger = wire.event("conformance/big", {"text": "x" * 10}, id="e", ts=1)
    cloud_app.engine.runs["01LARGE"] = [trigger], {wire.step_hash("a"): {"data": 1}}
    assert cloud_app.call("big", trigger=trigger, use_api=True, run_id="01LARGE").output == {"size": 10, "step": 1}
    assert all(request.headers["authorization"] in wire.BEARERS for request in cloud_app.engine.to("/v0/"))


def test_signed_inspection_shows_hashes(cloud_app: App) -> None:
    answer = cloud_app.get({"x-inngest-signature": wire.sign(b""), "x-inngest-server-kind": "cloud"})
    assert answer.status == 200
    inspection = answer.json
    assert inspection["authentication_succeeded"] is True
    assert inspection["app_id"] == "conformance"
    assert inspection["mode"] == "cloud"
    assert inspection["signing_key_hash"][:12] == wire.bearer().rsplit("-", 1)[-1][:12]
    assert _shows_no_secret(answer.body)


@pytest.mark.parametrize("key", [None, WRONG_KEY])
def test_inspection_says_little_to_others(cloud_app: App, key: str | None) -> None:
    signature = {"x-inngest-signature": wire.sign(b"", key)} if key else {}
    answer = cloud_app.get(signature | {"x-inngest-server-kind": "cloud"})
    assert answer.status in (200, 401)
    assert answer.json.get("authentication_succeeded") is not True
    assert "signing_key_hash" not in answer.json
    assert "app_id" not in answer.json
    assert _shows_no_secret(answer.body)


def _shows_no_secret(body: bytes) -> bool:
    secrets = (SIGNING_KEY.rsplit("-", 1)[-1], FALLBACK_KEY.rsplit("-", 1)[-1], wire.EVENT_KEY)
    return not any(secret.encode() in body for secret in secrets)
