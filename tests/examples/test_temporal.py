"""Temporal's examples by the one command that their READMEs say, on the real server; the demo that plays it; and the
project's README, word for word."""

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3

from ..cli.conftest import Command

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
STAFF_TOKEN = "open-sesame"


@contextmanager
def serving(project: Path, database: Path, working: str, app: str = "main:app") -> Iterator[str]:
    """``durably temporal dev {app}`` in a project; gives the app's origin once its worker says ``working``."""
    ports = ("--port", "0", "--ui-port", "0", "--app-port", "0")
    arguments = ("temporal", "dev", app, *ports, "--db", str(database), "--no-reload")
    command = Command(arguments, project, {**os.environ, "STAFF_TOKEN": STAFF_TOKEN})
    try:
        command.until(working)
        yield command.until(rf"{app} is up at (http://[\d.:]+)")[1]
    finally:
        command.stop()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The example's origin."""
    database = tmp_path_factory.mktemp("temporal") / "temporal.db"
    with serving(
        EXAMPLES / "temporal_fastapi", database, "working on order-queue: OrderWorkflow; process_order, restock"
    ) as origin:
        yield origin


class Answer:
    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self.status, self.type = response.status, response.headers.get("content-type")
        self.body: Any = response.json()


def call(method: str, url: str, body: Any = None, token: str | None = None) -> Answer:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return Answer(urllib3.request(method, url, json=body, headers=headers, timeout=30, retries=False))


@pytest.fixture
def order(shop: str) -> str:
    """An order that has been placed: its workflow's id."""
    placed = call("POST", f"{shop}/orders", {"order_id": uuid.uuid4().hex})
    assert placed.status == 200
    return str(placed.body["workflow_id"])


def test_an_order_is_placed_and_described(shop: str) -> None:
    order_id = uuid.uuid4().hex
    placed = call("POST", f"{shop}/orders", {"order_id": order_id})
    run_id = placed.body["run_id"]
    assert run_id
    assert (placed.status, placed.body) == (
        200,
        {"workflow_id": f"order-{order_id}", "run_id": run_id, "status": "started"},
    )
    described = call("GET", f"{shop}/orders/order-{order_id}")
    assert (described.status, described.body) == (
        200,
        {"workflow_id": f"order-{order_id}", "run_id": run_id, "status": "RUNNING"},
    )


def test_an_order_is_cancelled(shop: str, order: str) -> None:
    cancelled = call("POST", f"{shop}/orders/{order}/cancel")
    assert (cancelled.status, cancelled.body) == (200, {"status": "cancelled"})
    result = call("GET", f"{shop}/api/orders/{order}/result?wait=20", token=STAFF_TOKEN)
    assert (result.status, result.body["workflow_status"]) == (424, "cancelled")
    assert call("GET", f"{shop}/orders/{order}").body["status"] == "CANCELED"


@pytest.mark.parametrize("event", ["activity_task_scheduled", "activity_task_completed"])
def test_what_a_cancelled_order_had_reserved_is_put_back(event: str, shop: str, order: str) -> None:
    wait_for_event(shop, order, event)
    call("POST", f"{shop}/orders/{order}/cancel")
    assert call("GET", f"{shop}/api/orders/{order}/result?wait=20", token=STAFF_TOKEN).status == 424
    history = call("GET", f"{shop}/api/orders/{order}/history", token=STAFF_TOKEN).body["events"]
    activities = [event["name"] for event in history if event["type"] == "activity_task_completed"]
    assert "restock" in activities


def test_each_error_has_its_status(shop: str, order: str) -> None:
    again = call("POST", f"{shop}/orders", {"order_id": order.removeprefix("order-")})
    missing = call("GET", f"{shop}/orders/order-{uuid.uuid4().hex}")
    assert (again.status, again.type) == (409, "application/problem+json")
    assert (missing.status, missing.type) == (404, "application/problem+json")
    assert call("POST", f"{shop}/orders/order-{uuid.uuid4().hex}/cancel").status == 404
    other = call("GET", f"{shop}/orders/payroll")
    assert (other.status, other.body) == (404, {"detail": "there is no such order"})  # Nobody has asked the server.
    assert call("POST", f"{shop}/orders", {"order_id": ""}).status == 422


def test_the_gateway_is_for_the_staff(shop: str, order: str) -> None:
    for token in (None, "guessed", "ohne-Schlüssel".encode().decode("latin-1")):
        refused = call("POST", f"{shop}/api/orders/{order}/signals/ship", token=token)
        assert (refused.status, refused.body["title"]) == (401, "Unauthenticated")

    assert call("POST", f"{shop}/api/orders/{order}/signals/ship", token=STAFF_TOKEN).status == 202
    result = call("GET", f"{shop}/api/orders/{order}/result?wait=20", token=STAFF_TOKEN)
    assert (result.status, result.body["result"]) == (200, f"Processed order {order.removeprefix('order-')}")


def test_the_gateway_starts_the_same_orders(shop: str) -> None:
    order_id = uuid.uuid4().hex
    started = call("POST", f"{shop}/api/orders", {"order_id": order_id}, STAFF_TOKEN)
    assert (started.status, started.body["workflow_id"]) == (202, f"order-{order_id}")
    assert call("POST", f"{shop}/api/orders", {"order_id": "a b"}, STAFF_TOKEN).status == 400
    hold = call("POST", f"{shop}/api/orders/order-{order_id}/signals/hold", {"reason": "no address"}, STAFF_TOKEN)
    assert hold.status == 202


def test_one_document_describes_both(shop: str) -> None:
    paths = call("GET", f"{shop}/openapi.json").body["paths"]
    assert {"/orders", "/orders/{workflow_id}", "/orders/{workflow_id}/cancel"} <= paths.keys()
    assert {
        "/api/orders",
        "/api/orders/{workflow_id}/signals/ship",
        "/api/orders/{workflow_id}/queries/status",
    } <= paths.keys()


def wait_for_event(shop: str, order: str, event: str) -> None:
    headers = {"authorization": f"Bearer {STAFF_TOKEN}"}
    url = f"{shop}/api/orders/{order}/events"
    with urllib3.request("GET", url, headers=headers, timeout=30, retries=False, preload_content=False) as stream:
        for line in stream:
            if line.decode().strip() == f"event: {event}":
                return
    raise AssertionError(f"the order ended without {event}")


def test_the_demo_shows_it_and_exits_with_0() -> None:
    demo = subprocess.run(
        [sys.executable, "-m", "examples.demo_temporal"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    for shown in ("attempt 2", "Processed order A-1", "on hold: the customer moves house", "restock", "CANCELED"):
        assert shown in demo.stdout, demo.stdout
    assert "Traceback" not in demo.stdout + demo.stderr


def test_flask(tmp_path: Path) -> None:
    working = "working on order-queue: OrderWorkflow; process_order"
    with serving(EXAMPLES / "temporal_flask", tmp_path / "temporal.db", working, "app:app") as origin:
        placed = call("POST", f"{origin}/orders", {"order_id": "1"})
        assert (placed.status, placed.body) == (200, {"workflow_id": "order-1", "status": "started"})
        assert call("GET", f"{origin}/api/orders/order-1/result?wait=20").status == 401
        result = call("GET", f"{origin}/api/orders/order-1/result?wait=20", token=STAFF_TOKEN)
        assert (result.status, result.body["result"]) == (200, "Processed order 1")
        described = call("GET", f"{origin}/orders/order-1")
        assert (described.status, described.body) == (200, {"workflow_id": "order-1", "status": "COMPLETED"})

        missing = call("GET", f"{origin}/orders/order-2")
        assert (missing.status, missing.type) == (404, "application/problem+json")
        assert urllib3.request("GET", f"{origin}/orders/payroll").status == 404
        for body in ({"order_id": ""}, {}, ["1"]):
            assert urllib3.request("POST", f"{origin}/orders", json=body).status == 400


AUTH = """
from typing import Annotated
from fastapi import Header

def current_user(authorization: Annotated[str | None, Header()] = None) -> str | None:
    return authorization
"""
WORKFLOWS = """
from temporalio import workflow

@workflow.defn
class OrderWorkflow:
    def __init__(self) -> None:
        self.is_shipped = False

    @workflow.run
    async def run(self, order_id: str) -> str:
        await workflow.wait_condition(lambda: self.is_shipped)
        return f"{order_id} is shipped"

    @workflow.signal
    def ship(self) -> None:
        self.is_shipped = True
"""


def test_the_projects_readme(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().partition("\n## Temporal\n")[2]
    [app] = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    assert len(app.splitlines()) < 20
    project = tmp_path / "project"
    project.mkdir()
    for name, source in {"main.py": app, "auth.py": AUTH, "workflows.py": WORKFLOWS}.items():
        (project / name).write_text(source)
    with serving(project, tmp_path / "temporal.db", "working on order-queue: OrderWorkflow") as origin:
        assert call("POST", f"{origin}/api/orders", {"order_id": "1"}).status == 403
        assert call("POST", f"{origin}/api/orders", {"order_id": "1"}, "ada").status == 202
        assert call("POST", f"{origin}/api/orders/order-1/signals/ship", token="ada").status == 202
        result = call("GET", f"{origin}/api/orders/order-1/result?wait=20", token="ada")
        assert (result.status, result.body["result"]) == (200, "1 is shipped")
