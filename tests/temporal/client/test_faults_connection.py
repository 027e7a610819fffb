"""Connections to the server that break during a call, and a server that hangs."""

import asyncio
import contextlib
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Schedule, ScheduleActionStartWorkflow, ScheduleSpec, WorkflowFailureError, WorkflowHandle
from temporalio.service import RetryConfig, RPCError

from durably.temporal import Temporal
from durably.temporal.gateway import Gateway, GatewayResponse, Limits
from durably.temporal.gateway.problems import to_problem

from ...ports import free_port
from ...waiting import async_eventually
from ..apps import exposures
from ..dev_server import DevServer
from ..gateway.gateway_client import make_request
from ..proxy import Proxy
from ..workflows import TASK_QUEUE

PATIENCE = timedelta(seconds=90)
GIVEN_UP = ((504, "timed-out"), (503, "server-unavailable"))
"""The native client ends a call whose time is over with "Timeout expired" or with "operation was canceled". It says the
latter of a broken connection, too."""
NO_RETRY = RetryConfig(max_elapsed_time_millis=1, max_retries=1)


@pytest.fixture
def proxy(server: DevServer) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def hanging() -> Iterator[DevServer]:
    """A separate server, to be stopped."""
    with DevServer() as server:
        yield server


def gateway_at(address: str, limits: Limits | None = None, **options: Any) -> Gateway:
    temporal = Temporal(address, task_queue=TASK_QUEUE, **options)
    return Gateway(temporal, exposures(), allow_anonymous=True, limits=limits)


async def ask(gateway: Gateway, method: str, path: str, body: Any = None, /, **query: str) -> GatewayResponse:
    return await gateway.handle(make_request(None, method, path, body, **query))


def kind(response: GatewayResponse) -> tuple[int, str]:
    return response.status_code, json.loads(response.body).get("type", "").rpartition(":")[2]


async def begin(gateway: Gateway) -> str:
    """Start a workflow that sleeps."""
    started = await ask(gateway, "POST", "sleeping")
    return f"sleeping/{json.loads(started.body)['workflow_id']}"


@contextlib.asynccontextmanager
async def visitors(
    gateway: Gateway, place: str, answered: set[Any] | None = None
) -> AsyncIterator["Counter[tuple[int, str]]"]:
    """Eight clients that read and start workflows all the time. Their answers are counted.

    Each adds itself to ``answered``.
    """
    answers: Counter[tuple[int, str]] = Counter()

    async def visit(method: str, path: str) -> None:
        while True:
            answers[kind(await ask(gateway, method, path))] += 1
            if answered is not None:
                answered.add(asyncio.current_task())

    visits = [asyncio.create_task(visit(*each)) for each in [("GET", place), ("POST", "sleeping")] * 4]
    try:
        yield answers
        assert not any(visit.done() for visit in visits)
    finally:
        for visit in visits:
            visit.cancel()
        await asyncio.gather(*visits, return_exceptions=True)


async def until(answers: "Counter[tuple[int, str]]", *awaited: tuple[int, str]) -> None:
    """Until each has come once more."""
    before = Counter(answers)
    await async_eventually(lambda: all(answers[each] > before[each] for each in awaited), f"visitors got {awaited}")


async def test_visitors_do_not_notice_connections_that_break(proxy: Proxy) -> None:
    """Calls are repeated, on a new connection."""
    gateway = gateway_at(proxy.address)
    place = await begin(gateway)
    answered: set[Any] = set()
    async with visitors(gateway, place, answered) as answers, asyncio.timeout(120):
        for _ in range(8):
            proxy.cut()
            # Several cuts that hit a request one after another may use up its retries.
            answered.clear()
            await async_eventually(lambda: len(answered) == 8, "each visitor has an answer")
    assert answers.keys() == {(200, ""), (202, "")}
    assert proxy.opened > 4


async def test_long_poll_continues_when_its_connection_breaks(proxy: Proxy, temporal: Temporal) -> None:
    gateway = gateway_at(proxy.address)
    place = await begin(gateway)
    held = asyncio.create_task(ask(gateway, "GET", f"{place}/result", wait="60"))
    for _ in range(3):
        await asyncio.sleep(0.5)
        proxy.cut()
    await asyncio.sleep(0.5)
    assert not held.done()
    await (await temporal.client()).get_workflow_handle(place.partition("/")[2]).terminate()
    async with asyncio.timeout(60):
        assert (await held).status_code == 424


async def test_unrepeated_call_is_unavailable_and_not_a_server_error(proxy: Proxy) -> None:
    gateway = gateway_at(proxy.address, retry_config=NO_RETRY)
    place = await begin(gateway)
    unavailable = (503, "server-unavailable")
    async with visitors(gateway, place) as answers:
        await until(answers, (200, ""), (202, ""))
        while not answers[unavailable]:
            proxy.cut()
            await until(answers, (200, ""))
    assert answers.keys() == {(200, ""), (202, ""), unavailable}


async def test_workflow_started_before_the_connection_broke_is_not_reported_as_unavailable(
    proxy: Proxy, temporal: Temporal
) -> None:
    """Otherwise the client would start it a second time."""
    gateway = gateway_at(proxy.address, retry_config=NO_RETRY)
    order = {"order_id": uuid.uuid4().hex, "amount": 1, "lines": ["wait"]}
    starting = asyncio.create_task(ask(gateway, "POST", "orders", order, h_prefer="wait=60"))
    handle = (await temporal.client()).get_workflow_handle(f"order-{order['order_id']}")
    await async_eventually(lambda: exists(handle), "the workflow has started")
    async with asyncio.timeout(60):
        while not starting.done():
            proxy.cut()
            await asyncio.wait({starting}, timeout=0.2)
    assert starting.result().status_code == 202
    assert starting.result().headers["Location"] == f"/api/orders/{handle.id}"
    await handle.terminate()


async def exists(handle: WorkflowHandle[Any, Any]) -> bool:
    try:
        await handle.describe()
    except RPCError:
        return False
    return True


@pytest.mark.slow
async def test_a_server_that_hangs_is_given_up_on_in_time_and_found_again(hanging: DevServer) -> None:
    patient = gateway_at(hanging.address)
    place = await begin(patient)
    gateway = gateway_at(hanging.address, Limits(rpc_timeout=timedelta(seconds=1.5), keep_alive=0.1))
    events = await ask(gateway, "GET", f"{place}/events")
    assert events.stream is not None
    stream = events.stream()
    hanging.hang()
    try:
        assert kind(await ask(gateway, "GET", place)) in GIVEN_UP
        assert kind(await ask(gateway, "POST", "sleeping")) in GIVEN_UP
        assert kind(await ask(gateway, "GET", f"{place}/result", wait="1")) in GIVEN_UP  # The source is unknown.
        assert not (await gateway.temporal.check_health(timedelta(seconds=0.2))).ok
        async for chunk in stream:
            if b"does not answer" in chunk:
                break
    finally:
        hanging.go_on()
    assert kind(await ask(patient, "GET", place)) == (200, "")
    handle = (await gateway.temporal.client()).get_workflow_handle(place.rpartition("/")[2])
    await handle.terminate()
    rest = [chunk async for chunk in stream]
    assert b"workflow-terminated" in rest[-1]


async def test_calls_of_the_apps_own_end_too(hanging: DevServer) -> None:
    """Each of them ends, though none was given a timeout."""
    temporal = Temporal(hanging.address, task_queue=TASK_QUEUE, rpc_timeout=timedelta(seconds=0.3))
    client = await temporal.client()
    handle = await client.start_workflow("any", id="any", task_queue=TASK_QUEUE, rpc_timeout=PATIENCE)
    waiting = asyncio.create_task(handle.result())
    spec = ScheduleSpec(cron_expressions=["0 3 * * *"])
    schedule = Schedule(action=ScheduleActionStartWorkflow("any", id="any", task_queue=TASK_QUEUE), spec=spec)
    hanging.hang()
    try:
        calls: list[Awaitable[Any]] = [
            client.start_workflow("any", id="other", task_queue=TASK_QUEUE),
            handle.describe(),
            handle.query("any"),
            handle.signal("any"),
            handle.cancel(),
            handle.terminate(),
            handle.fetch_history(),
            anext(client.list_workflows()),
            client.count_workflows(),
            client.create_schedule("any", schedule),
            client.get_schedule_handle("any").describe(),
            asyncio.to_thread(lambda: temporal.sync.get_workflow_handle("any").describe()),
        ]
        async with asyncio.timeout(20):
            errors = await asyncio.gather(*calls, return_exceptions=True)
        assert {to_problem(error).status for error in errors if isinstance(error, Exception)} <= {503, 504}, errors
        assert len(errors) == len(calls)
        assert not waiting.done(), "a result may take its time"
    finally:
        hanging.go_on()
    await handle.terminate(rpc_timeout=PATIENCE)
    with pytest.raises(WorkflowFailureError):
        await waiting


async def test_log_repeats_the_reason_of_an_outage_at_intervals(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    gateway = gateway_at(f"127.0.0.1:{port}")
    for _ in range(3):
        answer = await ask(gateway, "GET", "sleeping/x")
        assert kind(answer) == (503, "server-unavailable")
        assert str(port) not in str(answer.body)
    [said] = [record.getMessage() for record in caplog.records if record.name == "durably.temporal"]
    assert said.startswith(f"the Temporal server at 127.0.0.1:{port} cannot be reached: ")
