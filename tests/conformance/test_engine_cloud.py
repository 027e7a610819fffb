"""An engine in production mode: it signs what it sends, and asks for keys."""

import pytest

from .. import wire
from .client import request
from .engine_under_test import Engine
from .scripted_app import ScriptedApp


def test_calls_are_signed_over_canonical_json(cloud_script: ScriptedApp) -> None:
    call = cloud_script.function().first_call({"b": 1, "a": "ü", "n": 1.0})
    assert call.headers["x-inngest-server-kind"] == "cloud"
    assert wire.is_signed(call.raw, call.headers["x-inngest-signature"])
    call.returns("done")
    assert cloud_script.engine.completed(call.run_id) == "done"


def test_canonical_json_is_sent(cloud_script: ScriptedApp) -> None:
    """Apps of some SDKs verify the canonical form, whatever the bytes are."""
    fn = cloud_script.function()
    call = fn.first_call({"b": 1, "a": {"z": None, "y": "ü\n"}})
    assert call.raw == wire.canonical(call.body)
    call.reports(wire.op("StepRun", "a", data={"z": 1, "a": "ü"}))
    call = fn.next_call()
    assert call.raw == wire.canonical(call.body)
    call.returns(None)


@pytest.mark.parametrize("key", ["wrong", ""])
def test_events_need_an_event_key(cloud_engine: Engine, key: str) -> None:
    answer = request("POST", f"{cloud_engine.origin}/e/{key}", b'{"name": "a"}')
    assert answer.status in (401, 404)
    assert b"conformance-event-key" not in answer.body


_PATHS = [
    ("POST", "/fn/register"),
    ("GET", "/v1/runs/01ARZ3NDEKTSV4RRFFQ69G5FAV"),
    ("DELETE", "/v1/runs/01ARZ3NDEKTSV4RRFFQ69G5FAV"),
    ("GET", "/v0/runs/01ARZ3NDEKTSV4RRFFQ69G5FAV/actions"),
    ("GET", "/v1/events"),
    ("POST", "/v1/signals"),
    ("POST", "/invoke/x"),
    ("POST", "/v1/checkpoint/01ARZ3NDEKTSV4RRFFQ69G5FAV/async"),
]


@pytest.mark.parametrize(("method", "path"), _PATHS)
@pytest.mark.parametrize("authorization", [None, wire.bearer(wire.WRONG_KEY), f"Bearer {wire.SIGNING_KEY}", "Bearer "])
def test_everything_else_needs_the_hashed_signing_key(
    cloud_engine: Engine, method: str, path: str, authorization: str | None
) -> None:
    headers = {"authorization": authorization} if authorization else {}
    answer = request(method, cloud_engine.origin + path, b"{}" if method == "POST" else None, headers)
    assert answer.status == 401


@pytest.mark.parametrize("bearer", sorted({*wire.BEARERS, wire.bearer(wire.FALLBACK_KEY)}))
def test_the_key_is_accepted_with_its_prefix_and_without_and_so_is_the_fallback(
    cloud_engine: Engine, bearer: str
) -> None:
    answer = request("GET", cloud_engine.origin + "/v1/runs/none", headers={"authorization": bearer})
    assert answer.status == 404  # The key is accepted: there is no such run.


def test_a_sync_meant_for_a_dev_engine_is_refused(cloud_script: ScriptedApp) -> None:
    cloud_script.function()
    headers = {"x-inngest-expected-server-kind": "dev"}
    assert cloud_script.engine.api("POST", "/fn/register", cloud_script.payload(), headers).status == 400
