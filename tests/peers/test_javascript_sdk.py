"""The official JavaScript SDK on our engine: each function of its app runs to its end, in both modes, and with
checkpoints after each step, after several, and without any.

Features of the hosted platform are left out: realtime messages, sandboxes, and features that its documentation calls
experimental (scores, metadata), except deferred functions.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from .. import wire
from ..conformance.engine_under_test import Engine
from ..variants import variants
from . import node
from .both_sdks import BothSdks
from .conftest import Provider
from .harness import PeerApp, running_app, with_soak

pytestmark = pytest.mark.timeout(node.INSTALL_SECONDS + 100)

COMPLETED: dict[str, Any] = {
    "run": {"first": {"n": 7, "at": "1970-01-01T00:00:00.000Z"}, "again": 8, "nothing": None},
    "sleep": "rested",
    "wait": {"id": 1, "answer": True},
    "wait-timeout": None,
    "invoke": {"typed": {"id": 3}, "byId": {"id": 4}, "error": "the child failed"},
    "send": 2,
    "parallel": [1, None, {"id": 5}, 2],
    "branches": [["l1", "l2", "l3"], ["r1", "r2"], "after"],
    "race": ["quick", "after"],
    "group-race": ["a1", "a2", "after"],
    "unoptimised": [["l1", "l2"], ["r1", "r2"]],
    "settled": ["good", "bad branch"],
    "experiment": "from b",
    "fetch": {"status": 200, "body": {"choices": ["hello"]}},
    "infer": "hello",
    "infer-anthropic": "hello",
    "wrap": "answer to a question",
    "retry": 1,
    "step-retry": "second",
    "step-fail": {"isStepError": True, "name": "TypeError", "message": "bad step", "cause": None},
    "retry-after": 1,
    "step-retry-after": "second",
    "many": 190,
    "deferring": "deferred",
    "large": 4_500_000,
    "middleware": {"function": [True, {"step": 1}]},
}
FAILED = {"non-retriable": "no more", "step-non-retriable": "no more", "guarded": "guarded failed"}
SLOW_IN_CLOUD = {"retry", "step-retry"}
"""In production the first retry waits for 15 seconds and more."""

APPS = {
    "on": "dev",
    "off": "dev",
    "buffered": "dev",
    "on-cloud": "cloud",
    "on-temporal": "temporal",
    "off-temporal": "temporal",
    "buffered-temporal": "temporal",
}


_starts = itertools.count()


@pytest.fixture(scope="module", params=with_soak(APPS, quick=["on", "on-cloud"]))
def app(request: pytest.FixtureRequest, provider: Provider) -> Iterator[PeerApp]:
    """An app whose functions have all been started.

    Its id is new each time: a worker of the test run may set up one parameter twice, and its engine lists runs by
    function.
    """
    node.install_packages()
    name, kind = request.param, APPS[request.param]
    cloud = kind != "dev"
    engine: Engine = request.getfixturevalue(f"{kind}_engine")
    command = [*node.node(), str(node.JS / "app.mjs")]
    checkpointing = name.partition("-")[0]
    with running_app(
        engine, f"peer{next(_starts)}-js-{name}", command, cloud=cloud, PEER_CHECKPOINTING=checkpointing
    ) as started:
        others = ["calls", "signal", "encrypted", "triggers", "triggers-b"]
        started.start([*COMPLETED, *FAILED, *others], id=1, provider=provider.origin)
        yield started


RACES = {"race", "group-race"}
"""The SDK completes a function only once all steps that it found have ended: also a sleep that has lost a race."""


@pytest.mark.parametrize("name", variants(COMPLETED, COMPLETED.keys() - RACES))
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


def test_a_signal_is_sent_and_arrives(app: PeerApp) -> None:
    app.wait_for_step("signal", "waiting")
    app.start(["send-signal"])
    assert app.output("send-signal") == "sent"
    assert app.output("signal") == {"signal": f"{app.id}-go", "data": {"n": 1}}


@pytest.mark.parametrize("name", FAILED)
def test_each_function_fails(app: PeerApp, name: str) -> None:
    assert FAILED[name] in app.error(name)["message"]


def test_checkpoints_reduce_the_number_of_calls(app: PeerApp) -> None:
    assert app.output("calls") == (6 if "-off" in app.id else 1)


def test_deferred_functions_run_once_their_run_has_ended(app: PeerApp) -> None:
    assert app.output("deferring") == "deferred"
    runs = app.engine.data(f"/v1/runs?function_id={app.id}-later")
    assert len(runs) == 2
    for run in runs:
        app.engine.completed(run["run_id"])
    if app.is_on_temporal:
        return  # Events that match nothing are not stored.
    events = app.engine.data(f"/v1/events?name={app.id}/deferred-ran")
    assert sorted(event["data"]["n"] for event in events) == [1, 3]


class TestAsInTheOtherLanguage(BothSdks):
    pass
