"""One module, run with ``inngest`` and with ``durably``, each on an engine of its own: the outcome is the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .. import wire
from ..waiting import eventually
from .harness import PeerApp, running_app, running_engine, uvicorn

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("inngest", "durably")


@contextmanager
def running_shop(package: str, database: Path) -> Iterator[PeerApp]:
    server = uvicorn("examples.migrate.app", ROOT)
    with running_engine(database) as engine, running_app(engine, "shop", server, MIGRATE_TO=package) as app:
        yield app


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By package, what became of three orders: a good one, one without items, and one that cannot be had."""
    found = {}
    for package in PACKAGES:
        with running_shop(package, tmp_path_factory.mktemp(package) / "shop.db") as app:
            found[package] = _take_orders(app)
    return found


def _take_orders(app: PeerApp) -> dict[str, Any]:
    orders = {"good": ["tea", "milk"], "empty": [], "impossible": ["tea", "unicorn"]}
    for number, (name, items) in enumerate(orders.items(), start=1):
        data = {"id": number, "items": items}
        (app.event_ids[name],) = app.engine.send(wire.event("shop/order.placed", data))
    (ignored,) = app.engine.send(wire.event("shop/order.placed", {"id": 0, "items": []}))
    app.wait_for_step("good", "waiting")
    app.engine.send(wire.event("shop/payment.received", {"order": 99, "amount": 1}))
    app.engine.send(wire.event("shop/payment.received", {"order": 1, "amount": 700}))
    outcome: dict[str, Any] = {name: _describe(app, app.run_id(name)) for name in orders}
    outcome["ignored"] = app.engine.data(f"/v1/events/{ignored}/runs")
    outcome["receipt"] = _describe(app, app.run_of_event("inngest/function.invoked", "receipt")["run_id"])
    outcome["done"] = _describe(app, app.run_of_event("shop/order.done", "done")["run_id"])
    outcome["handled"] = sorted(_failures_told(app))
    return outcome


def _failures_told(app: PeerApp) -> list[str]:
    """The failure handler's reports of the two orders that fail."""

    def look() -> list[str] | None:
        runs = app.engine.data("/v1/runs?function_id=shop-order-failure")
        return [run["output"] for run in runs] if sum(run["status"] == "Completed" for run in runs) == 2 else None

    return eventually(look, "two failures are reported")


def _describe(app: PeerApp, run_id: str) -> dict[str, Any]:
    """The parts of a run that users see and that do not differ between engines."""
    run = app.engine.ended(run_id)
    steps = app.engine.data(f"/v1/runs/{run_id}/steps")
    output = run["output"]
    if run["status"] == "Failed":
        output = {"name": output["name"], "message": output["message"]}
    described = [
        (*(step[key] for key in ("id", "hashed_id", "op", "status", "attempts")), _result_of(step)) for step in steps
    ]
    return {"status": run["status"], "output": output, "steps": sorted(described, key=lambda step: step[1])}


def _result_of(step: dict[str, Any]) -> Any:
    """The error, or the output without the ids of events."""
    if error := step.get("error"):
        return {"name": error["name"], "message": error["message"]}
    output = step.get("output")
    if isinstance(output, dict) and "name" in output:
        return {"name": output["name"], "data": output["data"]}
    return len(output) if isinstance(output, list) else output


def test_the_orders_end_as_they_should(outcomes: dict[str, dict[str, Any]]) -> None:
    """So that two empty outcomes are not taken for equal ones."""
    outcome = outcomes["durably"]
    assert outcome["good"]["output"] == {
        "status": "done",
        "audited": True,
        "reserved": ["tea reserved", "milk reserved"],
        "paid": 700,
        "receipt": {"order": 1, "amount": 700, "day": "2026-01-02"},
        "attempt": 0,
    }
    attempts = {step[1]: step[4] for step in outcome["good"]["steps"]}
    assert attempts[wire.step_hash("reserve")] == attempts[wire.step_hash("reserve", 1)] == 2
    assert attempts[wire.step_hash("prices")] == 1
    assert outcome["empty"]["output"] == {"name": "NonRetriableError", "message": "an order needs items"}
    assert outcome["impossible"]["output"]["message"] == "unicorns are out of stock"
    assert outcome["ignored"] == []
    assert outcome["done"]["output"] == "mail for order 1"
    assert [step[4] for step in outcome["done"]["steps"]] == [2]
    assert outcome["handled"] == ["order failed: an order needs items", "order failed: unicorns are out of stock"]


@pytest.mark.parametrize("what", ["good", "empty", "impossible", "ignored", "receipt", "done", "handled"])
def test_both_packages_have_the_same_runs(outcomes: dict[str, dict[str, Any]], what: str) -> None:
    assert outcomes["durably"][what] == outcomes["inngest"][what]
