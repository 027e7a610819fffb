"""Requests to a gateway without a framework, with a real server and worker."""

import asyncio
import json
import threading
import time
import uuid
from contextlib import aclosing
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from temporalio.client import (
    Interceptor,
    OutboundInterceptor,
    StartWorkflowInput,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowHistory,
)
from temporalio.common import (
    SearchAttributeKey,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Replayer

from durably.temporal import Temporal
from durably.temporal.gateway import (
    Action,
    Gateway,
    Limits,
    expose,
)
from durably.temporal.gateway.problems import to_problem

from ...waiting import async_eventually
from ..apps import exposures
from ..dev_server import DevServer
from ..workflows import MistypedWorkflow, OrderWorkflow, SleepingWorkflow, SumWorkflow
from . import gateway_client as asking
from .gateway_client import Answer, get

pytestmark = pytest.mark.usefixtures("worker")

ORDER = {"amount": 3, "lines": ["wait"]}


async def ask(gateway: Gateway, method: str, path: str, body: Any = None, /, **query: str) -> Answer:
    return await asking.ask(gateway, None, method, path, body, **query)


@pytest.fixture
def gateway(temporal: Temporal) -> Gateway:
    return Gateway(temporal, exposures(), allow_anonymous=True, limits=Limits(rpc_timeout=timedelta(seconds=5)))


async def start(gateway: Gateway, **changes: Any) -> str:
    """Start an order. Returns its path."""
    started = await ask(gateway, "POST", "orders", {"order_id": uuid.uuid4().hex, **ORDER, **changes})
    assert started.status == 202, started.json
    return f"orders/{started.json['workflow_id']}"


async def test_a_description_shows_pending_activities(gateway: Gateway) -> None:
    place = await start(gateway, lines=["flaky"])

    async def has_failed_once() -> bool:
        pending = (await ask(gateway, "GET", place)).json["pending_activities"]
        return bool(pending) and pending[0]["attempt"] > 1 and "last_failure" in pending[0]

    await async_eventually(has_failed_once, "an attempt has failed")
    [pending] = (await ask(gateway, "GET", place)).json["pending_activities"]
    assert pending["type"] == "charge"
    assert pending["last_failure"][0] == {"type": "BankAway", "message": "the bank does not answer"}
    assert (await ask(gateway, "POST", f"{place}/cancel", {"reason": "enough"})).status == 202
    cancelled = await ask(gateway, "GET", f"{place}/result", wait="30")
    assert (cancelled.status, cancelled.json["workflow_status"]) == (424, "cancelled")


async def test_a_query_without_a_worker_says_so(temporal: Temporal) -> None:
    limits = Limits(rpc_timeout=timedelta(seconds=1))
    exposed = expose(OrderWorkflow, name="orders", task_queue=f"unpolled-{uuid.uuid4()}", queries="all")
    gateway = Gateway(temporal, [exposed], allow_anonymous=True, limits=limits)
    place = await start(gateway)
    unanswered = await ask(gateway, "GET", f"{place}/queries/state")
    assert unanswered.status == 504
    assert "no worker polls the task queue" in unanswered.json["detail"]
    assert (await ask(gateway, "GET", f"{await start(gateway)}/result", wait="0")).status == 202


async def test_workflows_of_another_type_are_404(gateway: Gateway, temporal: Temporal) -> None:
    client = await temporal.client()
    handle = await client.start_workflow(SleepingWorkflow.run, id=str(uuid.uuid4()), task_queue="orders")
    for method, path in [
        ("POST", "/terminate"),
        ("GET", ""),
        ("GET", "/result"),
    ] * 2:  # The second time from the cache.
        assert (await ask(gateway, method, f"orders/{handle.id}{path}")).status == 404
    assert (await ask(gateway, "GET", f"sleeping/{handle.id}")).json["status"] == "running"
    await handle.terminate()


async def test_a_closed_workflow_refuses_signals_updates_and_cancels(gateway: Gateway) -> None:
    place = await start(gateway)
    assert (await ask(gateway, "POST", f"{place}/terminate", {"reason": "gone"})).status == 202
    for action, body in [
        ("signals/ship", None),
        ("updates/change_address", {"address": "here"}),
        ("terminate", None),
        ("cancel", None),
    ]:
        refused = await ask(gateway, "POST", f"{place}/{action}", body)
        assert (refused.status, refused.json["type"]) == (409, "urn:durably:problem:workflow-closed")
    ended = await ask(gateway, "GET", f"{place}/result")
    assert (ended.json["workflow_status"], f"orders/{ended.json['workflow_id']}") == ("terminated", place)


async def test_a_path_that_is_not_exposed_names_those_that_are(temporal: Temporal) -> None:
    exposed = expose(OrderWorkflow, name="orders", signals=["ship"])
    gateway = Gateway(temporal, [exposed], allow_anonymous=True)
    for method, path in (("POST", "signals/shipp"), ("POST", "terminate"), ("GET", "queries/state")):
        refused = await ask(gateway, method, f"orders/any/{path}")
        assert (refused.status, refused.json["type"]) == (404, "urn:durably:problem:not-found")
        assert "/orders/{workflow_id}/signals/ship" in refused.json["detail"]
        assert "terminate" not in refused.json["detail"]


async def test_the_problem_of_a_refused_update_has_its_reason(gateway: Gateway) -> None:
    refused = await ask(gateway, "POST", f"{await start(gateway)}/updates/change_address", {"address": ""})
    assert (refused.status, refused.json["failure"][0]["type"]) == (422, "AddressMissing")


async def test_repeated_update_is_executed_once(gateway: Gateway) -> None:
    place = await start(gateway)
    update, key = f"{place}/updates/change_address", uuid.uuid4().hex
    first = await ask(gateway, "POST", update, {"address": "a"}, h_idempotency_key=key)
    second = await ask(gateway, "POST", update, {"address": "a"}, h_idempotency_key=key)
    assert first.json == second.json
    assert (first.json["result"], "Idempotent-Replayed" in first.headers) == ("", False)
    assert second.headers["Idempotent-Replayed"] == "true"
    assert key not in first.json["update_id"]
    other = await ask(gateway, "POST", update, {"address": "b"}, h_idempotency_key=key)
    assert (other.status, other.json["type"]) == (422, "urn:durably:problem:idempotency-key-reused")
    assert (await ask(gateway, "POST", update, {"address": "c"})).json["result"] == "a"
    assert (await ask(gateway, "POST", f"{place}/terminate")).status == 202
    late = await ask(gateway, "POST", update, {"address": "a"}, h_idempotency_key=key)
    assert (late.json, late.headers["Idempotent-Replayed"]) == (first.json, "true")


async def test_signal_with_start_starts_a_missing_workflow(gateway: Gateway) -> None:
    order = {"order_id": uuid.uuid4().hex, **ORDER}
    noted = {"input": order, "signal": {"text": "one"}}
    for text in ("one", "two"):
        noted["signal"] = {"text": text}
        assert (await ask(gateway, "POST", "orders/signal-with-start/add_note", noted)).status == 202
    place = f"orders/order-{order['order_id']}"
    assert (await ask(gateway, "POST", "orders/signal-with-start/ship", {"input": order})).status == 202
    done = await ask(gateway, "GET", f"{place}/result", wait="30")
    assert done.json["result"]["note"] == "one,two"


async def test_a_workflow_is_reset_to_an_earlier_point(gateway: Gateway) -> None:
    place = await start(gateway)
    await ask(gateway, "POST", f"{place}/updates/change_address", {"address": "here"})
    before = (await ask(gateway, "GET", place)).json["run_id"]
    reset = await ask(gateway, "POST", f"{place}/reset", {"to": "first_workflow_task", "reason": "again"})
    assert reset.status == 202
    assert reset.json["run_id"] not in (before, None)
    assert (await ask(gateway, "GET", place, run_id=before)).json["status"] == "terminated"
    assert (await ask(gateway, "POST", f"{place}/reset", {"event_id": 1})).status == 400
    keyed = await ask(gateway, "POST", f"{place}/reset", {"to": "first_workflow_task"}, h_idempotency_key="1")
    assert (keyed.status, "Idempotency-Key does not work here" in keyed.json["detail"]) == (400, True)


async def test_a_history_contains_no_inputs_and_results(gateway: Gateway) -> None:
    place = await start(gateway, lines=["decline", "top secret"])
    assert (await ask(gateway, "GET", f"{place}/result", wait="30")).status == 424
    first = (await ask(gateway, "GET", f"{place}/history", page_size="5")).json
    rest = (await ask(gateway, "GET", f"{place}/history", page=first["next_page"])).json
    events = first["events"] + rest["events"]
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    failed = next(event for event in events if event["type"] == "activity_task_failed")
    assert failed["failure"][0]["type"] == "CardDeclined"
    assert next(event for event in events if event["id"] == failed["begun_by"])["name"] == "charge"
    assert "secret" not in json.dumps(events)


async def test_raw_history_can_be_replayed(gateway: Gateway, temporal: Temporal, server: DevServer) -> None:
    place = await start(gateway)
    await ask(gateway, "POST", f"{place}/signals/ship")
    assert (await ask(gateway, "GET", f"{place}/result", wait="30")).status == 200
    whole = (await ask(gateway, "GET", f"{place}/history/raw")).json
    workflow_id = place.removeprefix("orders/")
    history = WorkflowHistory.from_json(workflow_id, whole)
    await Replayer(workflows=[OrderWorkflow], data_converter=temporal.data_converter).replay_workflow(history)

    pages, page = [], ""
    while page is not None:
        part = (await ask(gateway, "GET", f"{place}/history/raw", page_size="2", page=page)).json
        pages.append(part["events"])
        page = part.get("next_page")
    assert len(pages) > 2
    assert [event for events in pages for event in events] == whole["events"]

    shown = await asyncio.to_thread(server.run, "workflow", "show", "--workflow-id", workflow_id, "--output", "json")
    assert WorkflowHistory.from_json(workflow_id, shown) == history


async def test_live_progress_contains_attempts(temporal: Temporal) -> None:
    gateway = Gateway(temporal, exposures(), allow_anonymous=True, limits=Limits(keep_alive=0.05, stream_limit=30))
    place = await start(gateway, lines=["flaky"])
    response = await gateway.handle(get(f"{place}/events"))
    assert response.stream is not None
    attempts = set[int]()
    async with aclosing(response.stream()) as chunks:
        async for chunk in chunks:
            if chunk.startswith(b"event: pending"):
                pending = json.loads(chunk.partition(b"data: ")[2])["pending_activities"]
                attempts |= {activity["attempt"] for activity in pending}
            if len(attempts) == 3:
                await ask(gateway, "POST", f"{place}/terminate")
            last = chunk
    assert b"\nevent: problem\n" in last
    assert b"workflow-terminated" in last


async def test_a_stream_ends_after_its_limit(temporal: Temporal) -> None:
    gateway = Gateway(temporal, exposures(), allow_anonymous=True, limits=Limits(keep_alive=0.05, stream_limit=0.1))
    response = await gateway.handle(get(f"{await start(gateway)}/events"))
    assert response.stream is not None
    assert b"event: problem" not in b"".join([chunk async for chunk in response.stream()])


async def test_a_request_can_name_a_run(gateway: Gateway) -> None:
    order = {"order_id": uuid.uuid4().hex, "amount": 1}
    first = await ask(gateway, "POST", "orders", order, h_prefer="wait=30")
    second = await ask(gateway, "POST", "orders", {**order, "amount": 2}, h_prefer="wait=30")
    place = f"orders/{first.json['workflow_id']}"
    assert (await ask(gateway, "GET", f"{place}/result", wait="5", run_id=first.json["run_id"])).json["result"][
        "paid"
    ] == 1
    assert (await ask(gateway, "GET", f"{place}/result", wait="5")).json["result"]["paid"] == 2
    assert second.json["run_id"] != first.json["run_id"]
    assert (await ask(gateway, "GET", place, run_id="no uuid")).status == 400


async def test_an_idempotency_key_works_with_each_id_policy(temporal: Temporal) -> None:
    """Ids can be reused, but a repeated request starts one workflow. Another key starts another one."""
    gateway = Gateway(temporal, [expose(OrderWorkflow, name="orders", id="once-{order_id}")], allow_anonymous=True)
    order = {"order_id": uuid.uuid4().hex, "amount": 1}
    first = await ask(gateway, "POST", "orders", order, h_idempotency_key="a", h_prefer="wait=30")
    replayed = await ask(gateway, "POST", "orders", order, h_idempotency_key="a")
    another = await ask(gateway, "POST", "orders", order, h_idempotency_key="b", h_prefer="wait=30")
    assert replayed.json["run_id"] == first.json["run_id"] != another.json["run_id"]
    assert (await ask(gateway, "POST", "orders", order, h_idempotency_key="")).status == 400


@pytest.mark.parametrize("policy", ["FAIL", "USE_EXISTING", "TERMINATE_EXISTING"])
async def test_simultaneous_requests_with_one_key_start_once_after_an_earlier_workflow(
    temporal: Temporal, policy: str
) -> None:
    conflict = WorkflowIDConflictPolicy[policy]
    exposed = expose(OrderWorkflow, name="orders", id="again-{order_id}", id_conflict_policy=conflict)
    gateway = Gateway(temporal, [exposed], allow_anonymous=True)
    order = {"order_id": uuid.uuid4().hex, **ORDER}
    before = await ask(gateway, "POST", "orders", order, h_idempotency_key="a")
    await (await temporal.client()).get_workflow_handle(before.json["workflow_id"]).terminate()
    started = await asyncio.gather(*(ask(gateway, "POST", "orders", order, h_idempotency_key="b") for _ in range(8)))
    assert {answer.status for answer in started} == {202}
    assert {answer.json["run_id"] for answer in started} != {before.json["run_id"]}
    assert len({answer.json["run_id"] for answer in started}) == 1


class Latecomer(Interceptor):
    """Of two starts with the policies, the first waits for the second, and the second for ``is_over``."""

    def __init__(self) -> None:
        self.is_over, self.has_come = asyncio.Event(), asyncio.Event()
        self.is_first = True

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        latecomer = self

        class Holding(OutboundInterceptor):
            async def start_workflow(self, input: StartWorkflowInput) -> WorkflowHandle[Any, Any]:
                if input.id_reuse_policy is not WorkflowIDReusePolicy.REJECT_DUPLICATE:
                    is_first, latecomer.is_first = latecomer.is_first, False
                    if is_first:
                        await latecomer.has_come.wait()
                    else:
                        latecomer.has_come.set()
                        await latecomer.is_over.wait()
                return await super().start_workflow(input)

        return Holding(next)


async def test_a_repetition_after_the_end_of_the_workflow_starts_nothing(server: DevServer) -> None:
    temporal = Temporal(server.address, task_queue="orders", interceptors=[latecomer := Latecomer()])
    gateway = Gateway(temporal, exposures(), allow_anonymous=True)
    order = {"order_id": uuid.uuid4().hex, **ORDER}
    before = await ask(gateway, "POST", "orders", order, h_idempotency_key="a")
    handle = (await temporal.client()).get_workflow_handle(before.json["workflow_id"])
    await handle.terminate()
    repeated = [asyncio.create_task(ask(gateway, "POST", "orders", order, h_idempotency_key="b")) for _ in range(2)]
    [early], [late] = await asyncio.wait(repeated, return_when=asyncio.FIRST_COMPLETED)
    await handle.terminate()
    latecomer.is_over.set()
    assert (await late).json["run_id"] == (await early).json["run_id"]
    assert (await handle.describe()).status is WorkflowExecutionStatus.TERMINATED


async def test_an_unfit_answer_is_logged_without_its_value(
    temporal: Temporal, caplog: pytest.LogCaptureFixture
) -> None:
    exposed = expose(MistypedWorkflow, name="mistyped", queries="all", updates="all")
    gateway = Gateway(temporal, [exposed], allow_anonymous=True)
    workflow_id = (await ask(gateway, "POST", "mistyped")).json["workflow_id"]
    for method, path in (("GET", "queries/size"), ("POST", "updates/finish"), ("GET", "result")):
        wait = {"wait": "30"} if path == "result" else {}
        unfit = await ask(gateway, method, f"mistyped/{workflow_id}/{path}", **wait)
        assert (unfit.status, unfit.json["type"]) == (500, "urn:durably:problem:unfit-answer")
        assert "secret" not in str(unfit.json)
    logged = [record.message for record in caplog.records if workflow_id in record.message]
    assert len(logged) == 3
    assert all("top secret" not in each for each in logged)
    assert all(place in each for place, each in zip(("queries/size", "1: ", "paid: "), logged, strict=True))


async def test_signals_with_one_key_are_sent_once(gateway: Gateway) -> None:
    place = await start(gateway)
    add_note = f"{place}/signals/add_note"
    for text, key, status, is_replay in (
        ("a", "1", 202, False),
        ("a", "1", 202, True),
        ("a", "2", 202, False),
        ("b", "1", 422, False),
        ("a", "1", 202, True),
    ):
        signalled = await ask(gateway, "POST", add_note, {"text": text}, h_idempotency_key=key)
        assert (signalled.status, "Idempotent-Replayed" in signalled.headers) == (status, is_replay)
    both = {"input": {"order_id": place.removeprefix("orders/order-"), **ORDER}, "signal": {"text": "c"}}
    with_start = "orders/signal-with-start/add_note"
    for key, is_replay in (("1", False), ("1", True), ("2", False)):
        signalled = await ask(gateway, "POST", with_start, both, h_idempotency_key=key)
        assert (signalled.status, "Idempotent-Replayed" in signalled.headers) == (202, is_replay)
    await ask(gateway, "POST", f"{place}/signals/ship")
    done = await ask(gateway, "GET", f"{place}/result", wait="30")
    assert done.json["result"]["note"] == "a,a,c,c"
    # Requests before the end of the workflow are still known.
    late = await ask(gateway, "POST", add_note, {"text": "a"}, h_idempotency_key="1")
    assert (late.status, late.headers["Idempotent-Replayed"]) == (202, "true")
    assert (await ask(gateway, "POST", add_note, {"text": "b"}, h_idempotency_key="1")).status == 422
    assert (await ask(gateway, "POST", add_note, {"text": "b"}, h_idempotency_key="3")).status == 409
    assert "Idempotent-Replayed" in (await ask(gateway, "POST", with_start, both, h_idempotency_key="1")).headers
    assert (await ask(gateway, "GET", place)).json["status"] == "completed"
    other = {**both, "signal": {"text": "d"}}
    assert (await ask(gateway, "POST", with_start, other, h_idempotency_key="1")).status == 422


@pytest.mark.parametrize(
    "path",
    [
        "orders/a\x00b",
        "orders/\ud800",
        "orders/" + "x" * 1000,
        "orders/..",
        "orders/?",
        "orders/a\x85b",
        "orders/\u2028",
    ],
)
async def test_a_strange_id_is_a_bad_request(gateway: Gateway, path: str) -> None:
    assert (await ask(gateway, "GET", path)).status == 400
    assert (await ask(gateway, "POST", "orders", {**ORDER, "order_id": path})).status == 400


async def test_authorize_gets_the_action(temporal: Temporal) -> None:
    actions: list[Action] = []

    async def authorize(action: Action) -> bool:
        actions.append(action)
        return action.operation == "start"

    gateway = Gateway(temporal, exposures(), authorize=authorize)
    await ask(gateway, "POST", "orders", {"order_id": "known", **ORDER})
    assert (await ask(gateway, "POST", "orders/order-known/signals/add_note", {"text": "x"})).status == 401
    [starting, signalling] = actions
    assert (starting.workflow, starting.workflow_id, starting.input.order_id) == ("orders", "order-known", "known")
    assert (signalling.operation, signalling.name, signalling.input.text) == ("signal", "add_note", "x")


async def test_a_synchronous_authorize_does_not_block_other_requests(temporal: Temporal) -> None:
    met, user = threading.Barrier(2, timeout=30), ContextVar("user", default="")

    def authorize(action: Action) -> bool:
        met.wait()
        return user.get() == "ada"

    gateway = Gateway(temporal, exposures(), authorize=authorize)
    user.set("ada")
    answers = await asyncio.gather(*(ask(gateway, "GET", f"orders/{uuid.uuid4()}") for _ in range(2)))
    assert [answer.status for answer in answers] == [404, 404]


async def test_authorize_may_be_asynchronous_in_any_form(temporal: Temporal) -> None:
    class Policy:
        async def __call__(self, action: Action, answer: bool = False) -> bool:
            assert asyncio.get_running_loop() is loop
            return answer

    loop, policy = asyncio.get_running_loop(), Policy()
    for authorize, status in (
        (policy, 401),
        (lambda _: "yes", 401),
        (partial(policy, answer=True), 404),
        (lambda _: policy(_, True), 404),
    ):
        gateway = Gateway(temporal, exposures(), authorize=authorize)
        assert (await ask(gateway, "GET", f"orders/{uuid.uuid4()}")).status == status


async def test_an_exception_in_authorize_refuses_the_request_and_is_logged(
    temporal: Temporal, caplog: pytest.LogCaptureFixture
) -> None:
    def authorize(action: Action) -> bool:
        raise RuntimeError("the password is 1234")

    failed = await ask(Gateway(temporal, exposures(), authorize=authorize), "GET", "orders/x")
    assert failed.status == 500
    assert "1234" not in json.dumps(failed.json)
    assert "the password is 1234" in caplog.text


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (RPCStatusCode.NOT_FOUND, 404),
        (RPCStatusCode.INVALID_ARGUMENT, 400),
        (RPCStatusCode.PERMISSION_DENIED, 403),
        (RPCStatusCode.RESOURCE_EXHAUSTED, 429),
        (RPCStatusCode.UNAVAILABLE, 503),
        (RPCStatusCode.UNAUTHENTICATED, 503),
        (RPCStatusCode.DEADLINE_EXCEEDED, 504),
        (RPCStatusCode.INTERNAL, 502),
    ],
)
def test_each_refusal_of_the_server_has_its_status(code: RPCStatusCode, status: int) -> None:
    problem = to_problem(RPCError("at postgres://app:hush@db/x, token=hush", code, b""))
    assert problem.status == status
    assert "hush" not in problem.response().body.decode()
    assert ("Retry-After" in problem.headers) == (status in (429, 503))


async def test_a_body_that_is_too_large_is_refused(temporal: Temporal) -> None:
    gateway = Gateway(temporal, [expose(SumWorkflow)], allow_anonymous=True, limits=Limits(max_body=10))
    assert (await ask(gateway, "POST", "sum-of-pair", {"pair": {"left": 1}})).status == 413


async def test_a_body_of_too_many_values_is_refused_before_they_are_validated(temporal: Temporal) -> None:
    gateway = Gateway(temporal, [expose(SumWorkflow)], allow_anonymous=True)
    bomb = {"pair": {"left": 1, "right": 2, "other": [0] * 100_001}}
    began = time.process_time()
    answer = await ask(gateway, "POST", "sum-of-pair", bomb)
    assert answer.status == 413
    assert time.process_time() - began < 0.2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (SearchAttributeKey.for_keyword_list("NobodyRegistered"), ["x"]),
        (SearchAttributeKey.for_int("WorkflowId"), 1),
        (SearchAttributeKey.for_float("NobodyRegistered"), "1"),
    ],
    ids=["unregistered", "reserved", "another type"],
)
async def test_a_refused_search_attribute_is_an_error_of_the_app(
    temporal: Temporal, caplog: pytest.LogCaptureFixture, key: Any, value: Any
) -> None:
    exposure = expose(SleepingWorkflow, search_attributes={key: lambda _: value})
    gateway = Gateway(temporal, [exposure], allow_anonymous=True)
    refused = await ask(gateway, "POST", "sleeping")
    assert (refused.status, refused.json["type"]) == (500, "urn:durably:problem:internal-error")
    assert ("SleepingWorkflow was not started" if value != "1" else "not suitable") in caplog.text
    assert key.name not in str(refused.json)
