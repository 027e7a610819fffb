"""Starts with a delay or a memo, and starts that attach to a running workflow."""

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import pytest
from temporalio.common import WorkflowIDConflictPolicy

from durably.temporal import Temporal
from durably.temporal.gateway import FOR_OPERATORS, Exposure, Gateway, expose

from ..workflows import ChainWorkflow, Order, OrderWorkflow, SleepingWorkflow, StepsWorkflow, SumWorkflow
from .gateway_client import Answer, ask

pytestmark = pytest.mark.usefixtures("worker")


def owned(temporal: Temporal, *exposures: Exposure) -> Gateway:
    return Gateway(temporal, exposures, authorize=lambda action: True)


def attaching(workflow: type = OrderWorkflow, name: str = "flows", **options: Any) -> Exposure:
    owner = {"owner": str, "staff": lambda user: user == "staff"}
    return expose(
        workflow,
        name=name,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        operations=FOR_OPERATORS,
        **{**owner, **options},
    )


def new_order() -> dict[str, Any]:
    return {"order_id": uuid.uuid4().hex, "amount": 1, "lines": ["wait"]}


async def start_delay_of(temporal: Temporal, answer: Answer) -> timedelta:
    handle = (await temporal.client()).get_workflow_handle(answer.json["workflow_id"])
    description = await handle.describe()
    assert description.execution_time is not None
    await handle.terminate()
    return description.execution_time - description.start_time


async def test_a_start_is_delayed_by_the_app(temporal: Temporal) -> None:
    def one_hour_a_line(order: Any, user: Any) -> timedelta:
        return timedelta(hours=len(order.lines) if user == "ada" else 9)

    exposed = [
        expose(OrderWorkflow, name="orders", start_delay=one_hour_a_line, signals="all", operations=FOR_OPERATORS),
        expose(SleepingWorkflow, name="fixed", start_delay=timedelta(minutes=5)),
    ]
    gateway = owned(temporal, *exposed)
    order = {"order_id": "1", "amount": 1, "lines": ["a", "b"]}
    assert await start_delay_of(temporal, await ask(gateway, "ada", "POST", "orders", order)) == timedelta(hours=2)
    with_start = await ask(gateway, "bob", "POST", "orders/signal-with-start/ship", {"input": order})
    assert await start_delay_of(temporal, with_start) == timedelta(hours=9)
    assert await start_delay_of(temporal, await ask(gateway, "ada", "POST", "fixed")) == timedelta(minutes=5)


async def test_a_keyed_start_ignores_a_memo_of_another_origin(temporal: Temporal) -> None:
    order = new_order()
    client = await temporal.client()
    handle = await client.start_workflow(
        OrderWorkflow.run, Order(**order), id=f"o-{order['order_id']}", task_queue="orders",
        memo={"durably-idempotency": "x"},
    )  # fmt: skip
    gateway = owned(temporal, expose(OrderWorkflow, name="orders", id="o-{order_id}"))
    assert (await ask(gateway, "ada", "POST", "orders", order, key="k")).status == 409
    await handle.terminate()


async def test_a_start_attaches_to_a_running_workflow(temporal: Temporal) -> None:
    gateway = owned(temporal, attaching(id="{order_id}"))
    order = new_order()
    first = await ask(gateway, "ada", "POST", "flows", order)
    again = await ask(gateway, "ada", "POST", "flows", {**order, "amount": 2})
    keyed = await ask(gateway, "ada", "POST", "flows", order, key="k")
    by_staff = await ask(gateway, "staff", "POST", "flows", order)
    assert [answer.status for answer in (first, again, keyed, by_staff)] == [202] * 4
    assert [answer.json.get("attached") for answer in (first, again, keyed, by_staff)] == [None, True, True, True]
    assert len({answer.json["run_id"] for answer in (first, again, keyed, by_staff)}) == 1
    assert (await ask(gateway, "ada", "POST", f"flows/{order['order_id']}/terminate")).status == 202
    # Nothing is running: the next request starts another workflow.
    again_started = await ask(gateway, "ada", "POST", "flows", order)
    assert (again_started.status, "attached" in again_started.json) == (202, False)
    assert again_started.json["run_id"] != first.json["run_id"]
    assert (await ask(gateway, "ada", "POST", f"flows/{order['order_id']}/terminate")).status == 202


async def test_an_attached_start_can_wait_for_the_result(temporal: Temporal, app_of_steps: Exposure) -> None:
    gateway = owned(temporal, app_of_steps)
    first = await ask(gateway, "ada", "POST", "flows", {"steps": ["wait", "again"]})
    place = f"flows/{first.json['workflow_id']}"
    waiting = asyncio.create_task(
        ask(gateway, "ada", "POST", "flows", {"steps": ["wait", "again"]}, h_prefer="wait=30")
    )
    assert (await ask(gateway, "ada", "POST", f"{place}/signals/go")).status == 202
    done = await waiting
    assert (done.status, done.json["result"], done.json.get("attached")) == (200, "done", True)


@pytest.fixture
def app_of_steps() -> Exposure:
    mark = uuid.uuid4().hex
    return attaching(StepsWorkflow, id=lambda steps: f"steps-{mark}", signals="all")


async def test_a_start_does_not_attach_to_another_owner_or_type(temporal: Temporal) -> None:
    workflow_id = uuid.uuid4().hex
    same_id = {"id": lambda value: workflow_id}
    anybodys: dict[str, Any] = {**same_id, "owner": None, "staff": None}
    gateway = owned(
        temporal,
        attaching(OrderWorkflow, id=lambda order: workflow_id),
        attaching(StepsWorkflow, "steps", **same_id),
        attaching(ChainWorkflow, "open", **anybodys),
        attaching(SumWorkflow, "policy", **anybodys),
    )
    assert (await ask(gateway, "ada", "POST", "flows", new_order())).status == 202
    requests: list[tuple[str, str, Any]] = [
        ("bob", "flows", new_order()),
        ("ada", "steps", {"steps": ["wait"]}),
        ("ada", "open", {"how": "wait"}),
        ("ada", "policy", {"pair": {"left": 1}}),
    ]
    for user, place, body in requests:
        for key in ({}, {"key": uuid.uuid4().hex}):
            refused = await ask(gateway, user, "POST", place, body, h_prefer="wait=5", **key)
            assert (place, refused.status, refused.json["type"][20:]) == (place, 409, "already-started")
            assert "run_id" not in refused.json
    assert (await ask(gateway, "ada", "POST", f"flows/{workflow_id}/terminate")).status == 202


async def test_a_start_terminates_only_a_workflow_of_its_own_type(temporal: Temporal) -> None:
    workflow_id = uuid.uuid4().hex
    policy = WorkflowIDConflictPolicy.TERMINATE_EXISTING
    exposed = [
        expose(workflow, name=name, id=lambda value: workflow_id, id_conflict_policy=policy, operations=FOR_OPERATORS)
        for workflow, name in ((OrderWorkflow, "orders"), (StepsWorkflow, "steps"))
    ]
    gateway = owned(temporal, *exposed)
    first = await ask(gateway, "ada", "POST", "orders", new_order())
    for key in ({}, {"key": uuid.uuid4().hex}):
        refused = await ask(gateway, "ada", "POST", "steps", {"steps": ["wait"]}, **key)
        assert (refused.status, refused.json["type"][20:]) == (409, "already-started")
        assert "run_id" not in refused.json
    assert (await ask(gateway, "ada", "GET", f"orders/{workflow_id}")).json["run_id"] == first.json["run_id"]
    again = await ask(gateway, "ada", "POST", "orders", new_order())
    assert (again.status, again.json["run_id"] == first.json["run_id"]) == (202, False)
    assert (await ask(gateway, "ada", "POST", f"orders/{workflow_id}/terminate")).status == 202


async def test_starts_at_the_same_time_are_one_workflow(temporal: Temporal) -> None:
    gateway, order = owned(temporal, attaching(id="{order_id}")), new_order()
    place = f"flows/{order['order_id']}"
    for _ in range(2):  # The second time there is a closed run.
        started = await asyncio.gather(*(ask(gateway, "ada", "POST", "flows", order) for _ in range(8)))
        assert {answer.status for answer in started} == {202}
        assert len({answer.json["run_id"] for answer in started}) == 1
        assert sorted("attached" in answer.json for answer in started) == [False, *[True] * 7]
        assert (await ask(gateway, "ada", "POST", f"{place}/terminate")).status == 202
