"""Pause and resume of workflows."""

import uuid
from collections.abc import Iterator

import pytest

from durably.temporal import Temporal

from ..app_server import AppServer
from ..apps import open_gateway
from ..dev_server import DevServer
from .gateway_client import ask

pytestmark = pytest.mark.usefixtures("worker")


def test_a_workflow_is_paused_and_resumed(some_app: AppServer) -> None:
    order = {"order_id": uuid.uuid4().hex, "amount": 3, "lines": ["wait"]}
    place = some_app.post("/open/orders", order).headers["Location"]
    assert some_app.post(f"{place}/resume").json["type"] == "urn:durably:problem:workflow-not-paused"
    assert some_app.post(f"{place}/pause", {"reason": "a look"}).status == 202
    assert some_app.get(place).json["status"] == "paused"
    for wait in ("0", "1"):
        pending = some_app.get(f"{place}/result", wait=wait)
        assert (pending.status, pending.json["status"]) == (202, "paused")
    assert some_app.post(f"{place}/pause").json["type"] == "urn:durably:problem:workflow-paused"
    for refused in (
        some_app.get(f"{place}/queries/state"),
        some_app.post(f"{place}/updates/change_address", {"address": "x"}),
    ):
        assert (refused.status, refused.json["type"]) == (409, "urn:durably:problem:workflow-paused")
        assert "until it is resumed" in refused.json["detail"]
    assert some_app.post(f"{place}/resume", {"reason": "seen"}).status == 202
    assert some_app.get(place).json["status"] == "running"
    assert some_app.get(f"{place}/result").json["status"] == "running"
    assert some_app.post(f"{place}/terminate").status == 202
    for operation in ("pause", "resume"):
        refused = some_app.post(f"{place}/{operation}")
        assert (refused.status, refused.json["type"]) == (409, "urn:durably:problem:workflow-closed")
    assert some_app.post("/open/sleeping/none/pause").status == 404
    assert some_app.post("/open/orders/none/pause").status == 404


async def test_a_start_that_attaches_to_a_paused_workflow_reports_its_status(temporal: Temporal) -> None:
    gateway = open_gateway(temporal)
    order = {"order_id": uuid.uuid4().hex, "amount": 3, "lines": ["wait"]}
    place = f"carts/{(await ask(gateway, None, 'POST', 'carts', order)).json['workflow_id']}"
    assert (await ask(gateway, None, "POST", f"{place}/pause")).status == 202
    attached = (await ask(gateway, None, "POST", "carts", order)).json
    assert (attached["status"], attached["attached"]) == ("paused", True)
    assert (await ask(gateway, None, "POST", f"{place}/terminate")).status == 202


@pytest.fixture
def server_without_pauses() -> Iterator[DevServer]:
    with DevServer(settings={"frontend.WorkflowPauseEnabled": False}) as server:
        yield server


async def test_a_server_that_cannot_pause(server_without_pauses: DevServer) -> None:
    temporal = Temporal(server_without_pauses.address, task_queue="idle")
    gateway = open_gateway(temporal)
    started = await ask(gateway, None, "POST", "orders", {"order_id": "1", "amount": 1})
    refused = await ask(gateway, None, "POST", f"orders/{started.json['workflow_id']}/pause")
    assert (refused.status, refused.json["type"]) == (501, "urn:durably:problem:pause-not-supported")
    assert "frontend.WorkflowPauseEnabled" in refused.json["detail"]
