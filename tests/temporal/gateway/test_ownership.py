"""Owners of workflows: declarations, search attributes, and changes from run to run."""

import asyncio
import json
import logging
import uuid
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueRequest,
    RegisterNamespaceRequest,
    RespondWorkflowTaskFailedRequest,
)
from temporalio.client import Client, Interceptor, OutboundInterceptor, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.common import (
    RetryPolicy,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
)
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal import DURABLY_OWNER, SearchAttributeError, Temporal, TemporalSettingsError, namespace, owned_by
from durably.temporal.gateway import (
    FOR_OPERATORS,
    Action,
    Gateway,
    Operation,
    call,
    expose,
)
from durably.temporal.namespace import OWNER_ATTRIBUTE

from ...waiting import async_eventually
from ..dev_server import DevServer
from ..workflows import ChainWorkflow, Order, OrderWorkflow, Pair, SleepingWorkflow, StepsWorkflow, SumWorkflow
from .gateway_client import ask

pytestmark = pytest.mark.usefixtures("worker")

OWNER = SearchAttributeKey.for_keyword(OWNER_ATTRIBUTE)


def owned(temporal: Temporal, *workflows: type, **options: Any) -> Gateway:
    exposures = [
        expose(each, name="flows", owner=str, staff=lambda user: user == "staff", operations=FOR_OPERATORS, **options)
        for each in workflows
    ]
    return Gateway(temporal, exposures, authorize=lambda action: True)


async def status_for(gateway: Gateway, user: str, workflow_id: str) -> int:
    return (await ask(gateway, user, "GET", f"flows/{workflow_id}")).status


async def until_run(gateway: Gateway, workflow_id: str, *, other_than: str) -> None:
    async def is_another() -> bool:
        described = await ask(gateway, "staff", "GET", f"flows/{workflow_id}")
        return bool(described.json["run_id"] != other_than)

    await async_eventually(is_another, "the workflow has another run")


@pytest.mark.parametrize("how", ["continue as new", "retry", "reset"])
async def test_owner_survives_continue_as_new_retry_and_reset(temporal: Temporal, how: str) -> None:
    gateway = owned(temporal, ChainWorkflow, retry_policy=RetryPolicy(maximum_attempts=2))
    started = (await ask(gateway, "ada", "POST", "flows", {"how": how})).json
    workflow_id, place = started["workflow_id"], f"flows/{started['workflow_id']}"
    if how == "reset":

        async def is_reset() -> bool:
            return (await ask(gateway, "ada", "POST", f"{place}/reset", {"to": "first_workflow_task"})).status == 202

        await async_eventually(is_reset, "the workflow can be reset")
    await until_run(gateway, workflow_id, other_than=started["run_id"])
    assert [await status_for(gateway, user, workflow_id) for user in ("ada", "bob", "staff")] == [200, 404, 200]
    assert (await ask(gateway, "ada", "POST", f"{place}/terminate")).status == 202


async def test_the_owner_survives_cron(temporal: Temporal) -> None:
    gateway = owned(temporal, SumWorkflow)
    handle = await (await temporal.client()).start_workflow(
        SumWorkflow.run,
        args=[Pair(1), 1],
        id=f"cron-{uuid.uuid4()}",
        task_queue="orders",
        cron_schedule="@every 1s",
        search_attributes=TypedSearchAttributes([SearchAttributePair(OWNER, "ada")]),
    )
    await until_run(gateway, handle.id, other_than=handle.result_run_id or "")
    assert [await status_for(gateway, user, handle.id) for user in ("ada", "bob")] == [200, 404]
    await handle.terminate()


async def test_a_workflow_can_change_its_owner(temporal: Temporal) -> None:
    gateway = owned(temporal, ChainWorkflow)
    started = await ask(gateway, "ada", "POST", "flows", {"how": "hand over"}, key=(key := uuid.uuid4().hex))
    workflow_id = started.json["workflow_id"]

    async def is_bobs() -> bool:
        return await status_for(gateway, "bob", workflow_id) == 200

    await async_eventually(is_bobs, "the workflow is bob's")
    assert await status_for(gateway, "ada", workflow_id) == 404
    # It was started with the key, and has another owner now.
    again = await ask(gateway, "ada", "POST", "flows", {"how": "hand over"}, key=key)
    assert (again.status, "run_id" in again.json) == (409, False)
    assert (await ask(gateway, "bob", "POST", f"flows/{workflow_id}/terminate")).status == 202


async def test_a_request_follows_a_workflow_that_has_just_continued_as_new(temporal: Temporal) -> None:
    """The workflow continues as new between the description of a run and the signal to it."""

    class Late(Interceptor):
        """Describes the first run of the workflow, once, as if it were the latest."""

        def __init__(self) -> None:
            self.first_run: str | None = None
            self.signalled: list[str | None] = []

        def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
            late = self

            class Describing(OutboundInterceptor):
                async def describe_workflow(self, input: Any) -> Any:
                    input.run_id, late.first_run = late.first_run or input.run_id, None
                    return await super().describe_workflow(input)

                async def signal_workflow(self, input: Any) -> None:
                    late.signalled.append(input.run_id)
                    await super().signal_workflow(input)

            return Describing(next)

    own = Temporal(temporal.settings.address, task_queue="orders", interceptors=[late := Late()])
    gateway = owned(own, ChainWorkflow, signals=[])
    exposed = expose(OrderWorkflow, name="orders", task_queue="orders", signals=[OrderWorkflow.ship])
    for action, status in (("terminate", "terminated"), ("cancel", "cancelled")):
        started = (await ask(gateway, "ada", "POST", "flows", {"how": "continue as new"})).json
        place = f"flows/{started['workflow_id']}"
        await until_run(gateway, started["workflow_id"], other_than=started["run_id"])
        late.first_run = started["run_id"]
        assert (await ask(gateway, "ada", "POST", f"{place}/{action}")).status == 202
        ended = await ask(gateway, "ada", "GET", f"{place}/result", wait="30")
        assert ended.json["workflow_status"] == status
        asked = await ask(gateway, "ada", "POST", f"{place}/{action}", run_id=started["run_id"])
        assert asked.status == 409

    # Again, with a workflow of another type and the same id: it is not signalled.
    orders = Gateway(own, [exposed], allow_anonymous=True)
    client = await own.client()
    order = Order(order_id=uuid.uuid4().hex, amount=1, lines=["wait"])
    first = await client.start_workflow(OrderWorkflow.run, order, id=order.order_id, task_queue="orders")
    await first.terminate()
    other = await client.start_workflow(SleepingWorkflow.run, id=order.order_id, task_queue="orders")
    late.first_run, late.signalled = first.result_run_id, []
    assert (await ask(orders, None, "POST", f"orders/{order.order_id}/signals/ship")).status == 404
    assert late.signalled == [first.result_run_id]
    await other.terminate()


async def test_id_reused_by_an_unexposed_type_is_404(temporal: Temporal) -> None:
    """``?run_id=`` is about that run, and reveals nothing about other runs with the id."""
    gateway = Gateway(temporal, [expose(OrderWorkflow, name="orders", queries="all")], allow_anonymous=True)
    client = await temporal.client()
    order = Order(order_id=uuid.uuid4().hex, amount=1)
    first = await client.start_workflow(OrderWorkflow.run, order, id=order.order_id, task_queue="orders")
    await first.result()
    place = f"orders/{order.order_id}"
    other = await client.start_workflow(SleepingWorkflow.run, id=order.order_id, task_queue="orders")
    query = f"{place}/queries/state"
    assert (await ask(gateway, None, "GET", query, run_id=first.result_run_id or "")).status == 200
    assert (await ask(gateway, None, "GET", query)).status == 404
    assert (await ask(gateway, None, "GET", query, run_id=other.result_run_id or "")).status == 404
    await other.terminate()


async def test_a_signal_does_not_start_or_reach_another_type(temporal: Temporal) -> None:
    exposed = expose(
        OrderWorkflow, name="orders", id="{order_id}", signals=[OrderWorkflow.ship], operations=FOR_OPERATORS
    )
    gateway = Gateway(temporal, [exposed], allow_anonymous=True)
    client = await temporal.client()
    order = {"order_id": uuid.uuid4().hex, "amount": 1}
    other = await client.start_workflow(SleepingWorkflow.run, id=str(order["order_id"]), task_queue="orders")
    assert (await ask(gateway, None, "POST", "orders/signal-with-start/ship", {"input": order})).status == 409
    assert not [
        e async for e in other.fetch_history_events() if e.HasField("workflow_execution_signaled_event_attributes")
    ]
    await other.terminate()


@pytest.mark.parametrize("policy", ["USE_EXISTING", "TERMINATE_EXISTING"])
async def test_no_policy_gives_another_users_workflow(temporal: Temporal, policy: str) -> None:
    gateway = owned(
        temporal, OrderWorkflow, id="{order_id}", id_conflict_policy=WorkflowIDConflictPolicy[policy], signals="all"
    )
    order = {"order_id": uuid.uuid4().hex, "amount": 1, "lines": ["wait"]}
    first = await ask(gateway, "ada", "POST", "flows", order)
    assert (await ask(gateway, "bob", "POST", "flows", order)).status == 409
    assert (await ask(gateway, "bob", "POST", "flows", order, key="k")).status == 409
    assert (await ask(gateway, "ada", "GET", f"flows/{order['order_id']}")).json["status"] == "running"
    again = await ask(gateway, "ada", "POST", "flows", order)
    assert (again.json["run_id"] == first.json["run_id"]) is (policy == "USE_EXISTING")
    assert (await ask(gateway, "ada", "POST", f"flows/{order['order_id']}/terminate")).status == 202


async def test_ids_contain_the_principal(temporal: Temporal) -> None:
    order = {"order_id": uuid.uuid4().hex, "amount": 1}
    template = owned(temporal, OrderWorkflow, id="{principal}-{order_id}")
    function = owned(temporal, OrderWorkflow, id=lambda order, user: f"{user}.{order.order_id}")
    for gateway, id in ((template, f"ada-{order['order_id']}"), (function, f"ada.{order['order_id']}")):
        assert (await ask(gateway, "ada", "POST", "flows", order)).json["workflow_id"] == id


async def test_memo_and_search_attributes_can_use_the_principal(temporal: Temporal) -> None:
    options: dict[str, Any] = {
        "memo": lambda order, user: {"by": user},
        "search_attributes": {OWNER: lambda order, user: user},
    }
    order = {"order_id": uuid.uuid4().hex, "amount": 1}
    refused = await ask(owned(temporal, OrderWorkflow, **options), "ada", "POST", "flows", order)
    assert refused.status == 500  # Only owner= sets this attribute.
    exposed = expose(OrderWorkflow, name="flows", **options)
    gateway = Gateway(temporal, [exposed], authorize=lambda action: True)
    started = await ask(gateway, "ada", "POST", "flows", order)
    described = await ask(gateway, "ada", "GET", f"flows/{started.json['workflow_id']}")
    assert (described.json["memo"], described.json["search_attributes"][OWNER.name]) == ({"by": "ada"}, "ada")


@pytest.mark.parametrize("is_async", [False, True])
async def test_authorize_decides_by_the_workflow(temporal: Temporal, is_async: bool) -> None:
    seen: list[tuple[Any, ...]] = []

    def decide(action: Action) -> bool:
        status = None if action.description is None else action.description.status
        seen.append((action.operation, action.owner, dict(action.memo), status is not None))
        return action.operation is Operation.START or action.memo.get("team") == action.principal

    async def decide_async(action: Action) -> bool:
        if action.operation is not Operation.START:
            with pytest.raises(RuntimeError, match=r"await action\.load\(\)"):
                _ = action.owner
        await action.load()
        return decide(action)

    exposed = expose(SleepingWorkflow, name="flows", memo=lambda value, user: {"team": user}, owner=lambda user: user)
    gateway = Gateway(temporal, [exposed], authorize=decide_async if is_async else decide)
    started = (await ask(gateway, "red", "POST", "flows", key=uuid.uuid4().hex)).json
    place = f"flows/{started['workflow_id']}"
    assert [(await ask(gateway, user, "GET", place)).status for user in ("red", "blue")] == [200, 403]
    assert (await ask(gateway, "red", "GET", "flows/none")).status == 403
    known, nothing = ("red", {"team": "red"}, True), (None, {}, False)
    assert [each[1:] for each in seen] == [("red", {}, False), known, nothing, nothing]
    await (await temporal.client()).get_workflow_handle(started["workflow_id"]).terminate()


async def test_authorize_gets_the_owner_of_all_workflows_of_a_list() -> None:
    owners: list[str | None] = []

    def authorize(action: Action) -> bool:
        owners.append(action.owner)
        return False

    exposed = expose(SleepingWorkflow, name="flows", owner=str, staff=lambda user: user == "staff")
    gateway = Gateway(Temporal("127.0.0.1:1", task_queue="none"), [exposed], authorize=authorize)
    for user in ("ada", "staff"):
        for method in ("GET", "POST"):
            assert (await ask(gateway, user, method, "flows")).status == 403
    assert owners == ["ada", "ada", None, "staff"]


async def test_facts_for_authorize_do_not_reveal_whether_a_workflow_exists(temporal: Temporal) -> None:
    exposed = expose(SleepingWorkflow, name="flows", owner=str, memo=lambda value: {"locked": True})
    gateway = Gateway(temporal, [exposed], authorize=lambda action: not action.memo.get("locked"))
    client = await temporal.client()
    assert (await ask(gateway, "ada", "GET", "flows")).status == 200  # It registers the owner's attribute.
    handle = await client.start_workflow(
        SleepingWorkflow.run,
        id=str(uuid.uuid4()),
        task_queue="anonymous's",
        memo={"locked": True},
        search_attributes=TypedSearchAttributes([SearchAttributePair(OWNER, "ada")]),
    )
    own = await ask(gateway, "ada", "POST", f"flows/{handle.id}/cancel")
    anothers, nobodys = [await ask(gateway, "bob", "POST", f"flows/{id}/cancel") for id in (handle.id, "none")]
    assert [answer.status for answer in (own, anothers, nobodys)] == [403, 404, 404]
    assert anothers.json == nobodys.json
    await handle.terminate()


async def test_a_former_owner_cannot_reset_a_workflow_of_another_user(temporal: Temporal) -> None:
    """A reset of any run ends the latest run."""
    gateway = owned(temporal, ChainWorkflow)
    client = await temporal.client()
    assert (await ask(gateway, "ada", "GET", "flows")).status == 200  # It registers the owner's attribute.

    async def start(owner: str) -> WorkflowHandle[Any, Any]:
        attributes = TypedSearchAttributes([SearchAttributePair(OWNER, owner)])
        return await client.start_workflow(
            ChainWorkflow.run, args=["wait", 1], id=id, task_queue="orders", search_attributes=attributes
        )

    async def has_begun(owner: str) -> bool:
        return bool((await ask(gateway, owner, "GET", f"flows/{id}")).json["history_length"] > 3)

    id = uuid.uuid4().hex
    first = await start("ada")
    await async_eventually(lambda: has_begun("ada"), "ada's run has begun")
    await first.terminate()
    second = await start("bob")
    place, former = f"flows/{id}", first.result_run_id or ""
    assert (await ask(gateway, "ada", "GET", place, run_id=former)).status == 200
    reset = {"to": "first_workflow_task"}
    assert (await ask(gateway, "ada", "POST", f"{place}/reset", reset, run_id=former)).status == 404
    assert (await ask(gateway, "bob", "GET", place)).json["status"] == "running"
    # Staff can reach both runs. They are refused too: the new run would be ada's, and bob's run would end.
    refused = await ask(gateway, "staff", "POST", f"{place}/reset", reset, run_id=former)
    assert (refused.status, refused.json["type"]) == (409, "urn:durably:problem:handed-over"), refused.json
    assert (await ask(gateway, "bob", "GET", place)).json["status"] == "running"
    # An earlier run of the same owner can be reset.
    await async_eventually(lambda: has_begun("bob"), "bob's run has begun")
    await second.terminate()
    await start("bob")
    again = await ask(gateway, "staff", "POST", f"{place}/reset", reset, run_id=second.result_run_id or "")
    assert again.status == 202, again.json
    assert (await ask(gateway, "staff", "POST", f"{place}/terminate")).status == 202


async def test_a_page_token_is_refused_after_the_owner_has_changed(temporal: Temporal) -> None:
    """The latest run with the id belongs to the former owner again."""
    gateway = owned(temporal, StepsWorkflow, signals="all")
    client = await temporal.client()
    steps = ["wait", "hand over"]
    started = await ask(gateway, "ada", "POST", "flows", {"steps": steps})
    workflow_id, run_id = started.json["workflow_id"], started.json["run_id"]
    place = f"flows/{workflow_id}"
    page = (await ask(gateway, "ada", "GET", f"{place}/history/raw", page_size="1")).json["next_page"]
    assert (await ask(gateway, "ada", "POST", f"{place}/signals/go")).status == 202
    await client.get_workflow_handle(workflow_id, run_id=run_id).result()
    attributes = TypedSearchAttributes([SearchAttributePair(OWNER, "ada")])
    again = await client.start_workflow(
        StepsWorkflow.run, ["wait"], id=workflow_id, task_queue="orders", search_attributes=attributes
    )
    assert await status_for(gateway, "ada", workflow_id) == 200
    assert (await ask(gateway, "ada", "GET", f"{place}/history/raw", page=page)).status == 404
    await again.terminate()


async def test_a_reset_does_not_change_the_owner_back(temporal: Temporal) -> None:
    """The new run would belong to the former owner, with signals of the current owner."""
    gateway = owned(temporal, StepsWorkflow, signals="all")
    started = await ask(gateway, "ada", "POST", "flows", {"steps": ["hand over", "wait"]})
    place = f"flows/{started.json['workflow_id']}"

    async def is_bobs() -> bool:
        return (await ask(gateway, "bob", "GET", place)).status == 200

    await async_eventually(is_bobs, "the workflow is bob's")
    for user in ("bob", "staff"):
        for reset in ({"to": "first_workflow_task"}, {"event_id": 4}):
            refused = await ask(gateway, user, "POST", f"{place}/reset", reset)
            assert (refused.status, refused.json["type"]) == (409, "urn:durably:problem:handed-over")
    assert (await ask(gateway, "bob", "POST", f"{place}/signals/go")).status == 202
    assert (await ask(gateway, "bob", "GET", f"{place}/result", wait="30")).status == 200
    later = await ask(gateway, "bob", "POST", f"{place}/reset", {"to": "last_workflow_task"})
    assert later.status == 202, later.json
    assert (await ask(gateway, "ada", "GET", place)).status == 404
    assert (await ask(gateway, "bob", "GET", f"{place}/result", wait="30")).status == 200


async def test_a_request_without_a_user_is_refused_before_its_body_is_read(temporal: Temporal) -> None:
    gateway = owned(temporal, OrderWorkflow)
    assert [(await ask(gateway, user, "POST", "flows", {})).status for user in (None, "ada")] == [401, 400]


@pytest.mark.parametrize(
    ("owner", "words"),
    [
        (lambda user: 7, "returned int"),
        (lambda user: "", "empty"),
        (lambda user: "ada'", "starts or ends with a single quote"),
        (lambda user: str(getattr(user, "tenant", None)), 'the string "None"'),
        (lambda user: str(object()), "an object without __str__"),
    ],
    ids=["number", "empty", "quote", "none", "object"],
)
async def test_an_invalid_owner_is_an_error_of_the_app(
    temporal: Temporal, caplog: pytest.LogCaptureFixture, owner: Any, words: str
) -> None:
    gateway = Gateway(temporal, [expose(SleepingWorkflow, name="flows", owner=owner)], authorize=lambda action: True)
    assert (await ask(gateway, "ada", "POST", "flows")).status == 500
    assert words in caplog.text


def test_an_anonymous_gateway_has_no_owners() -> None:
    with pytest.raises(TemporalSettingsError, match="sum-of-pair has owner="):
        Gateway(Temporal(), [expose(SumWorkflow, owner=str)], allow_anonymous=True)


async def test_an_attribute_of_another_name_is_registered_at_first_use(temporal: Temporal) -> None:
    name = f"Customer{uuid.uuid4().hex[:8]}"
    exposed = expose(SleepingWorkflow, name="flows", owner=str)
    gateway = Gateway(temporal, [exposed], authorize=lambda action: True, owner_attribute=name)
    assert (await ask(gateway, "ada", "GET", "flows")).json["workflows"] == []
    started = (await ask(gateway, "ada", "POST", "flows")).json
    described = await ask(gateway, "ada", "GET", f"flows/{started['workflow_id']}")
    assert described.json["search_attributes"][name] == "ada"
    await (await temporal.client()).get_workflow_handle(started["workflow_id"]).terminate()


async def test_without_permission_to_register_the_log_names_the_command(
    temporal: Temporal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In Temporal Cloud, apps cannot use the operator service."""
    own = Temporal(temporal.settings.address, task_queue="orders")
    client: Client = await own.client()

    async def refuse(*args: Any, **options: Any) -> Any:
        raise RPCError("Request unauthorized.", RPCStatusCode.PERMISSION_DENIED, b"")

    monkeypatch.setattr(client.operator_service, "list_search_attributes", refuse)
    exposed = expose(SleepingWorkflow, name="flows", owner=str)
    name = f"Unknown{uuid.uuid4().hex[:8]}"
    gateway = Gateway(own, [exposed], authorize=lambda action: True, owner_attribute=name)
    command = f"temporal operator search-attribute create --namespace default --name {name} --type Keyword"
    with caplog.at_level(logging.WARNING):
        refused = await ask(gateway, "ada", "POST", "flows")
    assert (refused.status, name in json.dumps(refused.json)) == (503, False)
    assert command in caplog.text
    with pytest.raises(SearchAttributeError) as raised:
        await namespace.ensure_keyword(client, name, timedelta(seconds=5))
    assert command in str(raised.value)
    # A registered attribute needs no such permission.
    allowed = owned(temporal, SleepingWorkflow)
    assert (await ask(allowed, "ada", "GET", "flows")).status == 200
    known = Gateway(own, [exposed], authorize=lambda action: True)
    assert (await ask(known, "ada", "GET", "flows")).status == 200


async def test_an_update_is_found_only_by_its_own_name(temporal: Temporal) -> None:
    """Its id is not enough: ``authorize`` gets the name in the URL, and the other update is not exposed."""
    gateway = owned(temporal, OrderWorkflow, updates=[OrderWorkflow.change_address])
    order = {"order_id": uuid.uuid4().hex, "amount": 1, "lines": ["wait"]}
    started = (await ask(gateway, "ada", "POST", "flows", order)).json
    place = f"flows/{started['workflow_id']}"
    handle = (await temporal.client()).get_workflow_handle(started["workflow_id"])
    await handle.execute_update("change_address", "a", id="own")
    await handle.execute_update("decide", "a secret", id="other")
    with pytest.raises(WorkflowUpdateFailedError):
        await handle.execute_update("decide", "refused", id="refused")
    assert (await ask(gateway, "ada", "GET", f"{place}/updates/change_address/own")).json["result"] == ""
    for update_id in ("other", "refused"):
        asked = await ask(gateway, "ada", "GET", f"{place}/updates/change_address/{update_id}")
        assert (asked.status, "secret" in json.dumps(asked.json)) == (404, False)
    await handle.terminate()


async def test_cancellation_of_a_workflow_that_has_just_closed_is_refused(temporal: Temporal) -> None:
    """The server accepts the cancellation of a closed run without an error."""

    class Ending(Interceptor):
        """Ends a workflow between its description and its cancellation."""

        def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
            class Cancelling(OutboundInterceptor):
                async def cancel_workflow(self, input: Any) -> None:
                    await (await temporal.client()).get_workflow_handle(input.id).terminate()
                    await super().cancel_workflow(input)

            return Cancelling(next)

    gateway = owned(Temporal(temporal.settings.address, task_queue="orders", interceptors=[Ending()]), SleepingWorkflow)
    started = (await ask(gateway, "ada", "POST", "flows")).json
    refused = await ask(gateway, "ada", "POST", f"flows/{started['workflow_id']}/cancel")
    assert (refused.status, refused.json["type"]) == (409, "urn:durably:problem:workflow-closed")


async def test_a_keyed_signal_that_the_server_withholds_is_sent_once(temporal: Temporal) -> None:
    """The server withholds signals while a worker processes a task of the workflow. Here no worker completes it."""
    own = Temporal(temporal.settings.address, task_queue=f"held-{uuid.uuid4().hex}")
    client = await own.client()
    gateway = owned(own, OrderWorkflow, signals="all")
    order = {"order_id": uuid.uuid4().hex, "amount": 1, "lines": ["wait"]}
    workflow_id = (await ask(gateway, "ada", "POST", "flows", order)).json["workflow_id"]
    queue = TaskQueue(name=own.task_queue)
    task = await client.workflow_service.poll_workflow_task_queue(
        PollWorkflowTaskQueueRequest(namespace="default", task_queue=queue, identity="a test")
    )
    path = f"flows/{workflow_id}/signals/add_note"
    for _ in range(2):
        held = await ask(gateway, "ada", "POST", path, {"text": "a"}, key="k")
        assert (held.status, "Idempotent-Replayed" in held.headers) == (202, False)
    await client.workflow_service.respond_workflow_task_failed(
        RespondWorkflowTaskFailedRequest(namespace="default", task_token=task.task_token, identity="a test")
    )
    again = await ask(gateway, "ada", "POST", path, {"text": "a"}, key="k")
    assert (again.status, again.headers["Idempotent-Replayed"]) == (202, "true")
    handle = client.get_workflow_handle(workflow_id)
    history = [event async for event in handle.fetch_history_events()]
    assert sum(event.HasField("workflow_execution_signaled_event_attributes") for event in history) == 1
    await handle.terminate()


async def test_one_of_two_simultaneous_signals_with_start_of_two_users_is_refused(temporal: Temporal) -> None:
    """The workflow of the other user starts between the check of the id and the start."""
    handles = []

    class Racing(Interceptor):
        def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
            class Starting(OutboundInterceptor):
                async def start_workflow(self, input: Any) -> Any:
                    if not handles:
                        handles.append(None)
                        first = await ask(gateways[0], "ada", "POST", path, {"input": order})
                        assert first.status == 202
                    return await super().start_workflow(input)

            return Starting(next)

    racing = Temporal(temporal.settings.address, task_queue="orders", interceptors=[Racing()])
    gateways = [owned(each, OrderWorkflow, id="{order_id}", signals=["ship"]) for each in (temporal, racing)]
    order, path = {"order_id": uuid.uuid4().hex, "amount": 1, "lines": ["wait"]}, "flows/signal-with-start/ship"
    lost = await ask(gateways[1], "bob", "POST", path, {"input": order})
    assert (lost.status, lost.json["type"]) == (409, "urn:durably:problem:already-started")
    assert [await status_for(gateways[0], user, str(order["order_id"])) for user in ("ada", "bob")] == [200, 404]


@pytest.mark.parametrize("step", ["hand over", "become another"])
async def test_a_result_is_hidden_after_the_owner_has_changed(temporal: Temporal, step: str) -> None:
    """The request waits before and after the change."""

    class Waiting(Interceptor):
        """Continues the workflow when a request waits for its result."""

        def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
            class Fetching(OutboundInterceptor):
                def fetch_workflow_history_events(self, input: Any) -> Any:
                    waited_for.set()
                    return super().fetch_workflow_history_events(input)

            return Fetching(next)

    waited_for = asyncio.Event()
    own = Temporal(temporal.settings.address, task_queue="orders", interceptors=[Waiting()])
    gateway = owned(own, StepsWorkflow)
    started = (await ask(gateway, "ada", "POST", "flows", {"steps": ["wait", step]})).json
    handle = (await temporal.client()).get_workflow_handle(started["workflow_id"])
    waiting = asyncio.create_task(ask(gateway, "ada", "GET", f"flows/{handle.id}/result", wait="60"))
    await waited_for.wait()
    await handle.signal("go")
    if step == "become another":

        async def is_another() -> bool:
            return (await handle.describe()).workflow_type == "SleepingWorkflow"

        await async_eventually(is_another, "the workflow has continued as another type")
        await handle.terminate()
    refused = await waiting
    assert (refused.status, "done" in json.dumps(refused.json)) == (404, False)


async def create_namespace(address: str, name: str) -> None:
    """The server knows a new namespace after a few seconds."""
    client = await Temporal(address).client()
    retention = Duration(seconds=86_400)
    request = RegisterNamespaceRequest(namespace=name, workflow_execution_retention_period=retention)
    await client.workflow_service.register_namespace(request)

    async def is_known() -> bool:
        return (await Temporal(address, namespace=name).check_health()).ok

    await async_eventually(is_known, "the namespace is known")


async def test_the_attribute_is_registered_by_the_first_start_with_an_owner(server: DevServer) -> None:
    """There has been no request to a gateway. A view with ``start_on_commit`` is an example."""
    namespace = f"own-{uuid.uuid4().hex[:8]}"
    await create_namespace(server.address, namespace)
    own = Temporal(server.address, namespace=namespace, task_queue="orders")
    client = await own.client()
    for each in ("one", "two"):
        await client.start_workflow(
            SleepingWorkflow.run, id=each, task_queue="orders", search_attributes=owned_by("ada")
        )
    described = await client.get_workflow_handle("two").describe()
    assert described.typed_search_attributes[DURABLY_OWNER] == "ada"


async def test_workflows_without_an_owner_are_named_once_in_the_log(
    temporal: Temporal, caplog: pytest.LogCaptureFixture
) -> None:
    call._warn_of_missing_owner.cache_clear()
    gateway = owned(temporal, SleepingWorkflow)
    client = await temporal.client()
    handle = await client.start_workflow(SleepingWorkflow.run, id=f"none-{uuid.uuid4().hex}", task_queue="orders")
    assert [await status_for(gateway, user, handle.id) for user in ("ada", "bob", "staff")] == [404, 404, 200]
    warnings = [record.getMessage() for record in caplog.records if "without an owner" in record.getMessage()]
    assert len(warnings) == 1
    assert "SleepingWorkflow" in warnings[0]
    assert "search_attributes=owned_by(…)" in warnings[0]
    await handle.terminate()


async def test_the_result_of_a_retry_is_hidden_if_its_owner_has_changed(temporal: Temporal) -> None:
    """The first run fails and stays Ada's. For its result, the server returns that of the next run."""
    quick = RetryPolicy(maximum_attempts=2, initial_interval=timedelta(milliseconds=10))
    gateway = owned(temporal, StepsWorkflow, retry_policy=quick)
    started = (await ask(gateway, "ada", "POST", "flows", {"steps": ["fail", "hand over"]})).json
    place, first = f"flows/{started['workflow_id']}", started["run_id"]
    for user, status in (("staff", 200), ("bob", 200), ("ada", 404)):
        assert (await ask(gateway, user, "GET", f"{place}/result", wait="30")).status == status
    assert (await ask(gateway, "ada", "GET", place, run_id=first)).json["status"] == "failed"
    for wait in ("0", "30"):
        refused = await ask(gateway, "ada", "GET", f"{place}/result", run_id=first, wait=wait)
        assert (refused.status, refused.json["type"]) == (404, "urn:durably:problem:not-found")
    staff = await ask(gateway, "staff", "GET", f"{place}/result", run_id=first)
    assert staff.json["result"] == "done"


KEYED = [
    ("flows", {"pair": {"left": 1}}),
    ("orders/signal-with-start/ship", {"input": {"order_id": "1", "amount": 1}}),
    ("orders/none/signals/ship", None),
    ("orders/none/updates/change_address", {"address": "a"}),
]


@pytest.mark.parametrize(("path", "body"), KEYED, ids=[path.replace("/", " ") for path, _ in KEYED])
async def test_a_key_without_a_principal_is_refused(path: str, body: Any) -> None:
    """``authorize`` reads the request itself, and there is no ``principal=``. There is no server."""
    exposed = [
        expose(SumWorkflow, name="flows"),
        expose(OrderWorkflow, name="orders", operations=FOR_OPERATORS, signals="all", updates="all"),
    ]
    gateway = Gateway(Temporal("127.0.0.1:1", task_queue="none"), exposed, authorize=lambda action: True)
    for anonymous in (None, SimpleNamespace(is_anonymous=True)):
        refused = await ask(gateway, anonymous, "POST", path, body, key="k")
        assert (refused.status, refused.json["type"]) == (400, "urn:durably:problem:no-principal")
        assert 'principal=lambda request: "everyone"' in refused.json["detail"]
    assert (await ask(gateway, "everyone", "POST", path, body, key="k")).status == 503
    assert (await ask(gateway, None, "POST", path, body)).status == 503


async def test_staff_see_the_owner_of_a_workflow(temporal: Temporal) -> None:
    gateway = owned(temporal, SleepingWorkflow)
    mine = (await ask(gateway, "ada", "POST", "flows")).json["workflow_id"]
    place = f"flows/{mine}"

    async def rows(user: str) -> list[Any]:
        page = await ask(gateway, user, "GET", "flows", status="running", page_size="500")
        return [each for each in page.json["workflows"] if each["workflow_id"] == mine]

    for user, owner in (("staff", "ada"), ("ada", None)):
        await async_eventually(lambda user=user: rows(user), "the workflow is listed")  # type: ignore[misc]
        [row] = await rows(user)
        described = (await ask(gateway, user, "GET", place)).json
        assert (row.get("owner"), described.get("owner")) == (owner, owner)
    await ask(gateway, "ada", "POST", f"{place}/terminate")
