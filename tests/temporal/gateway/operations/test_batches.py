"""Batches: cancel, terminate and signal all open workflows that match a query."""

import asyncio
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from durably.temporal import Temporal
from durably.temporal.gateway import (
    FOR_OPERATORS,
    FOR_OWNERS,
    Action,
    Gateway,
    Limits,
    Operation,
    expose,
)
from durably.temporal.gateway.operations import batches, visibility

from ....waiting import async_eventually, eventually
from ...app_server import AppServer
from ...dev_server import DevServer
from ...workflows import OrderWorkflow, SleepingWorkflow, StepsWorkflow
from ..gateway_client import Answer, ask

pytestmark = pytest.mark.usefixtures("worker")

BATCHES = {Operation.BATCH_CANCEL, Operation.BATCH_TERMINATE, Operation.BATCH_SIGNAL, Operation.BATCH_STATUS}


NO_HEADERS: Mapping[str, str] = {}


def kind(answer: Any) -> str:
    return str(answer.json["type"]).removeprefix("urn:durably:problem:")


def owned(temporal: Temporal, *, seen: list[Action] | None = None, **limits: Any) -> Gateway:
    """Each user owns workflows, "staff" reaches all. ``seen`` collects the actions that ``authorize`` gets."""

    def authorize(action: Action) -> bool:
        if seen is not None:
            seen.append(action)
        return action.input is None or getattr(action.input, "reason", "") != "forbidden"

    exposed: dict[str, Any] = {"owner": str, "staff": lambda user: user == "staff", "operations": FOR_OPERATORS}
    others = expose(StepsWorkflow, name="others", id=lambda value: value.steps[-1], **exposed)
    orders = expose(OrderWorkflow, name="flows", id="{order_id}", signals=["ship", "add_note"], **exposed)
    return Gateway(
        temporal,
        [orders, others],
        authorize=authorize,
        limits=Limits(**limits),
    )


class Shop:
    """Orders whose ids start with ``mark``, in the gateway of ``owned``."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway, self.mark = gateway, uuid.uuid4().hex[:12]
        self.query = f"WorkflowId STARTS_WITH '{self.mark}'"

    async def place(self, user: str, name: str) -> None:
        order = {"order_id": f"{self.mark}-{name}", "amount": 1, "lines": ["wait"]}
        assert (await ask(self.gateway, user, "POST", "flows", order)).status == 202

    async def batch(self, user: str, operation: str, *, headers: Mapping[str, str] = NO_HEADERS, **body: Any) -> Answer:
        where = f"flows/batch/{operation}"
        return await ask(self.gateway, user, "POST", where, {"query": self.query, **body}, **headers)

    async def find(self, user: str, *names: str) -> None:
        """Wait until dry runs find these orders, because the index of workflows lags."""

        async def is_found() -> bool:
            found = await self.batch(user, "cancel", dry_run=True)
            assert found.status == 200
            ids = sorted(f"{self.mark}-{name}" for name in names)
            return bool((found.json["count"], sorted(found.json["workflows"])) == (len(names), ids))

        await async_eventually(is_found, "the batch finds the workflows")

    async def run(self, user: str, operation: str, **body: Any) -> dict[str, Any]:
        """Start a batch and wait until it has ended. Returns the last state of the job."""
        started = await self.batch(user, operation, **body)
        assert started.status == 202, started.json
        assert started.headers["Location"] == f"/api/flows/batch/jobs/{started.json['job_id']}"
        job: dict[str, Any] = {}

        async def is_over() -> bool:
            job.update((await self.job(user, started.json["job_id"])).json)
            return bool(job["state"] != "running")

        await async_eventually(is_over, "the batch has ended")
        return job

    async def job(self, user: str, job_id: str) -> Answer:
        return await ask(self.gateway, user, "GET", f"flows/batch/jobs/{job_id}")

    async def status(self, name: str) -> str:
        """The result of an order that has ended, or that the batch has not reached."""
        return str((await ask(self.gateway, "staff", "GET", f"flows/{self.mark}-{name}")).json["status"])

    async def until_status(self, name: str, *statuses: str) -> None:
        async def has_status() -> bool:
            return await self.status(name) in statuses

        await async_eventually(has_status, "the workflow has the status")


@pytest.mark.slow
def test_a_batch_in_each_framework(some_app: AppServer) -> None:
    mark = uuid.uuid4().hex[:12]
    query = {"query": f"WorkflowId STARTS_WITH 'order-{mark}'"}
    places = []
    for number in range(2):
        order = {"order_id": f"{mark}-{number}", "amount": 1, "lines": ["wait"]}
        places.append(some_app.post("/open/orders", order).headers["Location"])
    found = eventually(
        lambda: some_app.post("/open/orders/batch/signals/ship", {**query, "dry_run": True}),
        "the batch finds both workflows",
        is_right=lambda found: found.json["count"] >= 2,
    )
    assert (found.status, sorted(found.json["workflows"])) == (200, [f"order-{mark}-0", f"order-{mark}-1"])
    started = some_app.post("/open/orders/batch/signals/ship", query)
    assert (started.status, started.json["count"]) == (202, 2)
    for place in places:
        assert some_app.get(f"{place}/result", wait=30).json["status"] == "completed"
    job = eventually(
        lambda: some_app.get(started.headers["Location"]),
        "the batch has ended",
        is_right=lambda job: job.json["state"] != "running",
    )
    assert (job.status, job.json["operation"], job.json["state"]) == (200, "signal", "completed")
    assert (job.json["total"], job.json["completed"], job.json["failed"]) == (2, 2, 0)
    assert job.json["links"] == {"self": started.headers["Location"]}
    key = {"Idempotency-Key": mark}
    first, second = (some_app.post("/open/orders/batch/signals/ship", query, key) for _ in range(2))
    assert (first.status, first.headers.get("Idempotent-Replayed")) == (202, None)
    assert (second.status, second.json, second.headers["Idempotent-Replayed"]) == (202, first.json, "true")
    assert some_app.post("/open/orders/batch/signals/ship", {**query, "reason": "other"}, key).status == 422
    for operation in ("cancel", "terminate"):
        assert some_app.post(f"/open/orders/batch/{operation}", {**query, "dry_run": True}).status == 200
    for body in (None, {}, {"query": " "}):
        assert some_app.post("/open/orders/batch/terminate", body).status == 400
    assert some_app.get("/open/orders/batch/jobs/none").status == 404
    assert some_app.post("/open/orders/batch/signals/secret", query).status == 404
    # This exposure only has the operations of users.
    assert some_app.post("/open/sleeping/batch/terminate", query).status == 404


async def test_a_batch_reaches_only_workflows_of_the_owner(temporal: Temporal) -> None:
    shop = Shop(owned(temporal))
    for user, name in (("ada", "a1"), ("ada", "a2"), ("bob", "b1"), ("bob", "b2")):
        await shop.place(user, name)
    other = await ask(shop.gateway, "ada", "POST", "others", {"steps": ["wait", f"{shop.mark}-other"]})
    assert other.status == 202
    await shop.find("staff", "a1", "a2", "b1", "b2")
    await shop.find("ada", "a1", "a2")
    await shop.find("eve")
    # A query cannot remove the conditions of the gateway.
    shop.query = f"WorkflowId = 'x' OR {shop.query} OR DurablyOwner = 'bob'"
    await shop.find("ada", "a1", "a2")
    job = await shop.run("ada", "terminate", reason="a mistake")
    assert (job["operation"], job["state"], job["total"], job["completed"]) == ("terminate", "completed", 2, 2)
    assert [await shop.status(name) for name in ("a1", "a2", "b1", "b2")] == ["terminated"] * 2 + ["running"] * 2
    await shop.find("ada")  # A closed workflow is not found.
    assert [(await shop.job(user, job["job_id"])).status for user in ("ada", "bob", "staff")] == [200, 404, 200]

    shop.query = f"WorkflowId STARTS_WITH '{shop.mark}'"
    job = await shop.run("staff", "cancel")
    assert (job["operation"], job["completed"]) == ("cancel", 2)
    for name in ("b1", "b2"):
        await shop.until_status(name, "cancelled")
    assert [(await shop.job(user, job["job_id"])).status for user in ("bob", "staff")] == [404, 200]
    place = f"others/{other.json['workflow_id']}"
    assert (await ask(shop.gateway, "ada", "GET", place)).json["status"] == "running"
    assert (await ask(shop.gateway, "ada", "POST", f"{place}/terminate")).status == 202
    # The job belongs to its exposure, for staff too.
    elsewhere = await ask(shop.gateway, "staff", "GET", f"others/batch/jobs/{job['job_id']}")
    unknown = await shop.job("staff", f"{job['job_id'][:-32]}{uuid.uuid4().hex}")
    assert (elsewhere.status, elsewhere.json) == (unknown.status, unknown.json) == (404, elsewhere.json)


async def test_a_batch_checks_each_workflow_that_the_server_finds(
    temporal: Temporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some databases of the server compare texts without case, and find other workflows too."""
    monkeypatch.setattr(batches, "reachable", lambda call: (visibility.compare("WorkflowType", "!=", "x"),))
    shop = Shop(owned(temporal, max_batch=2))
    for user, name in (("ada", "a1"), ("Ada", "a2"), ("bob", "b1")):
        await shop.place(user, name)
    other = await ask(shop.gateway, "ada", "POST", "others", {"steps": ["wait", f"{shop.mark}-other"]})
    for user, name in (("ada", "a1"), ("Ada", "a2"), ("bob", "b1")):
        await shop.find(user, name)
    await shop.find("eve")
    job = await shop.run("ada", "terminate")
    assert (job["total"], job["completed"], job["failed"]) == (1, 1, 0)
    assert [await shop.status(name) for name in ("a1", "a2", "b1")] == ["terminated", "running", "running"]
    started = await shop.batch("eve", "terminate")
    assert (started.status, started.json["count"]) == (202, 0)

    async def is_over() -> bool:
        return bool((await shop.job("eve", started.json["job_id"])).json["state"] != "running")

    await async_eventually(is_over, "the batch has ended")
    assert (await shop.job("eve", started.json["job_id"])).json["completed"] == 0
    place = f"others/{other.json['workflow_id']}"
    assert [await shop.status(name) for name in ("a2", "b1")] == ["running"] * 2
    assert (await ask(shop.gateway, "ada", "GET", place)).json["status"] == "running"
    assert (await ask(shop.gateway, "ada", "POST", f"{place}/terminate")).status == 202
    for user in ("Ada", "bob"):
        await shop.batch(user, "terminate")


async def test_requests_with_one_key_start_one_batch(temporal: Temporal) -> None:
    shop, key = Shop(owned(temporal)), {"key": uuid.uuid4().hex}
    for user, name in (("ada", "a1"), ("bob", "b1")):
        await shop.place(user, name)
        await shop.find(user, name)
    answers = await asyncio.gather(
        *(shop.batch("ada", "signals/add_note", headers=key, signal={"text": "x"}) for _ in range(4))
    )
    assert [each.status for each in answers] == [202] * 4
    assert len({each.json["job_id"] for each in answers}) == 1
    assert {each.json["count"] for each in answers} == {1}
    assert sorted(each.headers.get("Idempotent-Replayed", "") for each in answers) == ["", "true", "true", "true"]
    for change in ({"signal": {"text": "y"}}, {"signal": {"text": "x"}, "reason": "other"}):
        refused = await shop.batch("ada", "signals/add_note", headers=key, **change)
        assert (refused.status, kind(refused)) == (422, "idempotency-key-reused")

    # The key is valid for one principal and one operation.
    others = [await shop.batch("bob", "signals/add_note", headers=key, signal={"text": "x"})]
    others += [await shop.batch("ada", "signals/ship", headers=key), await shop.batch("ada", "cancel", headers=key)]
    assert len({answers[0].json["job_id"], *(each.json["job_id"] for each in others)}) == 4
    # It is valid after the end of the job, when its workflows are not found any more.
    await shop.until_status("a1", "completed", "cancelled")  # Either of the two jobs may be first.
    again = await shop.batch("ada", "signals/add_note", headers=key, signal={"text": "x"})
    assert (again.status, again.json) == (202, answers[0].json)

    refused = await shop.batch("ada", "cancel", headers=key, dry_run=True)
    assert (refused.status, "leave out the Idempotency-Key" in refused.json["detail"]) == (400, True)
    assert (await shop.batch("bob", "terminate")).status == 202


async def test_a_batch_reaches_paused_workflows(temporal: Temporal) -> None:
    shop = Shop(owned(temporal))
    for name in ("running", "paused"):
        await shop.place("ada", name)
    assert (await ask(shop.gateway, "ada", "POST", f"flows/{shop.mark}-paused/pause")).status == 202
    await shop.find("ada", "running", "paused")
    await shop.run("ada", "terminate")
    assert [await shop.status(name) for name in ("running", "paused")] == ["terminated", "terminated"]
    await shop.find("ada")


async def test_a_batch_signals_with_the_input(temporal: Temporal) -> None:
    shop = Shop(owned(temporal))
    await shop.place("ada", "a1")
    await shop.find("ada", "a1")
    assert (await shop.run("ada", "signals/add_note", signal={"text": "hello"}))["completed"] == 1
    assert (await shop.run("ada", "signals/ship"))["completed"] == 1
    done = await ask(shop.gateway, "ada", "GET", f"flows/{shop.mark}-a1/result", wait="30")
    assert done.json["result"]["note"] == "hello"


async def test_bad_batches_are_refused(temporal: Temporal) -> None:
    shop = Shop(owned(temporal, max_batch=1))
    for query in ("", "  ", "WorkflowId =", "ORDER BY x", "a = 1) OR (b = 2", "NoSuchAttribute = 'x'", 5, None):
        refused = await shop.batch("ada", "terminate", query=query)
        assert (query, refused.status) == (query, 400), refused.json
    assert "query must not be empty" in (await shop.batch("ada", "terminate", query="  ")).json["detail"]
    for operation, body in (
        ("terminate", {"dry_run": "yes"}),
        ("terminate", {"dryrun": True}),
        ("terminate", {"signal": {}}),
        ("signals/add_note", {}),
        ("signals/add_note", {"signal": {"text": 5}}),
        ("signals/ship", {"signal": {"text": "x"}}),
    ):
        refused = await shop.batch("ada", operation, **body)
        assert (operation, refused.status, kind(refused)) == (operation, 400, "invalid-input")
    assert (await shop.batch("ada", "signals/secret")).status == 404
    assert (await shop.batch("ada", "signals")).status == 404
    assert (await shop.batch(None, "terminate")).status == 401  # type: ignore[arg-type]


async def test_a_batch_of_too_many_workflows_is_refused(temporal: Temporal) -> None:
    shop = Shop(owned(temporal))
    for name in ("a1", "a2"):
        await shop.place("ada", name)
    await shop.find("ada", "a1", "a2")
    shop.gateway = owned(temporal, max_batch=1)
    for dry_run in (False, True):
        refused = await shop.batch("ada", "terminate", dry_run=dry_run)
        assert (refused.status, kind(refused)) == (400, "batch-too-large")
        assert refused.json["limit"] == 1
    assert [await shop.status(name) for name in ("a1", "a2")] == ["running"] * 2
    shop.gateway = owned(temporal, max_batch=2)
    assert (await shop.run("ada", "terminate"))["completed"] == 2


async def test_authorize_decides_about_each_batch(temporal: Temporal) -> None:
    seen: list[Action] = []
    shop = Shop(owned(temporal, seen=seen))
    for operation in ("cancel", "terminate", "signals/ship"):
        for user in ("ada", "staff"):
            assert (await shop.batch(user, operation, reason="forbidden")).status == 403
    await shop.job("ada", "none")
    asked = [(action.operation, action.name, action.owner, action.workflow_id) for action in seen]
    assert asked == [
        ("batch_cancel", None, "ada", None),
        ("batch_cancel", None, None, None),
        ("batch_terminate", None, "ada", None),
        ("batch_terminate", None, None, None),
        ("batch_signal", "ship", "ada", None),
        ("batch_signal", "ship", None, None),
        ("batch_status", None, "ada", None),
    ]
    assert seen[0].input.query == shop.query


def test_only_operators_have_batches() -> None:
    assert BATCHES <= FOR_OPERATORS - FOR_OWNERS


async def test_a_workflow_with_the_id_batch_is_reachable_without_batches(temporal: Temporal) -> None:
    exposed = expose(OrderWorkflow, name="flows", operations=FOR_OPERATORS - BATCHES)
    refused = await ask(Gateway(temporal, [exposed], allow_anonymous=True), None, "POST", "flows/batch/cancel")
    assert refused.json["detail"] == "there is no such workflow here"


def test_a_batch_that_does_not_exist_is_not_taken_for_a_workflow(app: AppServer) -> None:
    for place in ("updates/change_address", "reset", "queries/note", "pause"):
        refused = app.post(f"/open/orders/batch/{place}", {})
        assert refused.status == 404
        assert "there is no such batch: the path after batch/ is cancel" in refused.json["detail"], place
    assert app.get("/open/orders/batch").json["detail"] == "there is no such workflow here"


@pytest.fixture
def limited_server(request: pytest.FixtureRequest) -> Iterator[DevServer]:
    with DevServer(settings=request.param) as server:
        yield server


@pytest.mark.parametrize(
    ("limited_server", "status", "problem", "words"),
    [
        ({"frontend.enableBatcher": False}, 501, "batch-not-supported", "frontend.enableBatcher"),
        ({"frontend.MaxConcurrentBatchOperationPerNamespace": 0}, 429, "batch-running", "repeat the request"),
    ],
    indirect=["limited_server"],
)
async def test_batch_that_the_server_refuses_is_a_problem(
    limited_server: DevServer, status: int, problem: str, words: str
) -> None:
    exposed = expose(SleepingWorkflow, name="naps", operations=FOR_OPERATORS)
    gateway = Gateway(Temporal(limited_server.address, task_queue="unpolled"), [exposed], allow_anonymous=True)
    refused = await ask(gateway, None, "POST", "naps/batch/cancel", {"query": "WorkflowId = 'x'"})
    assert (refused.status, kind(refused)) == (status, problem)
    assert words in refused.json["detail"]
