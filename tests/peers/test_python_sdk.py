"""The official Python SDK on our engine: each function of its apps runs to its end, in both modes."""

from collections.abc import Iterator
from typing import Any

import pytest

from .. import wire
from ..conformance.engine_under_test import Engine
from .both_sdks import BothSdks
from .conftest import Provider
from .harness import PeerApp, running_app, uvicorn, werkzeug, with_soak

COMPLETED: dict[str, Any] = {
    "run": {"id": 8, "placed": "2026-01-02"},
    "sleep": "rested",
    "wait": {"id": 1, "answer": True},
    "wait-timeout": None,
    "invoke": {"typed": 3, "by_id": {"id": 4, "placed": "2026-01-01"}, "error": "the child failed"},
    "send": 2,
    "parallel": [1, None, {"id": 5, "placed": "2026-01-01"}, 2],
    "race": [["l1", "l2", "l3"], ["r1", "r2"], "after"],
    "infer": "hello",
    "retry": 1,
    "step-retry": "second",
    "step-fail": {"name": "LookupError", "message": "bad step", "stack": True},
    "retry-after": 1,
    "step-retry-after": "second",
    "large": 4_500_000,
    "middleware": {"function": [True, {"step": 1}]},
}
ASYNC_ONLY = {"remote-state": {"is_same": True}, "concurrent-io": [1, 2]}
FAILED = {"non-retriable": "no more", "step-non-retriable": "no more", "guarded": "guarded failed"}
SLOW_IN_CLOUD = {"retry", "step-retry"}
"""In production the first retry waits for 15 seconds and more."""

APPS = {
    "fast-api": (uvicorn("fast_api_app"), "dev"),
    "flask": (werkzeug("flask_app"), "dev"),
    "fast-api-cloud-streaming": (uvicorn("fast_api_app"), "cloud"),
    "flask-cloud": (werkzeug("flask_app"), "cloud"),
    "fast-api-temporal": (uvicorn("fast_api_app"), "temporal"),
    "flask-temporal": (werkzeug("flask_app"), "temporal"),
}


@pytest.fixture(scope="module", params=with_soak(APPS, quick=["flask", "fast-api-cloud-streaming"]))
def app(request: pytest.FixtureRequest, provider: Provider) -> Iterator[PeerApp]:
    """An app whose functions have all been started."""
    name = request.param
    command, kind = APPS[name]
    cloud = kind != "dev"
    engine: Engine = request.getfixturevalue(f"{kind}_engine")
    streaming = {"PEER_STREAMING": "1"} if "streaming" in name else {}
    with running_app(engine, f"peer-{name}", command, cloud=cloud, **streaming) as started:
        others = ["encrypted", "triggers", "triggers-b"] + (list(ASYNC_ONLY) if "fast-api" in name else [])
        started.start([*COMPLETED, *FAILED, *others], id=1, provider=provider.origin + "/v1")
        yield started


@pytest.mark.parametrize("name", COMPLETED)
def test_each_function_completes(app: PeerApp, name: str) -> None:
    if app.is_cloud and name in SLOW_IN_CLOUD:
        pytest.skip("production's backoff is long")
    if app.is_on_temporal and name == "large":
        assert "at most 1500000 are allowed" in app.error(name)["message"]
        return
    if name == "wait":
        app.wait_for_step("wait", "waiting")
        app.engine.send(wire.event(f"{app.id}/answer", {"id": 2}))
        app.engine.send(wire.event(f"{app.id}/answer", {"id": 1, "answer": True}))
    assert app.output(name) == COMPLETED[name]


@pytest.mark.parametrize("name", ASYNC_ONLY)
def test_an_async_function_completes(app: PeerApp, name: str) -> None:
    if name not in app.event_ids:
        pytest.skip("a sync app")
    assert app.output(name) == ASYNC_ONLY[name]


@pytest.mark.parametrize("name", FAILED)
def test_each_function_fails(app: PeerApp, name: str) -> None:
    assert FAILED[name] in app.error(name)["message"]


class TestAsInTheOtherLanguage(BothSdks):
    pass
