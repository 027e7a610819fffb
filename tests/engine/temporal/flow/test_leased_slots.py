"""Concurrency limits without a key: processes lease their slots."""

import asyncio
import datetime as dt
import time
from collections import Counter

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowExecutionStatus, WorkflowHandle

from durably import Concurrency, Context
from durably.engine.model.runs import RunStatus
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal import workflow_requests
from durably.engine.temporal.ids import app_queue, slots_workflow_id
from durably.engine.temporal.reports.lists import RunFilter
from durably.engine.temporal.slots.lease_time import USE_SECONDS
from durably.engine.temporal.engine import WorkflowEngine

from ....waiting import async_eventually
from .conftest import PATIENCE, World
from .test_queues import event_counts


def slots_of(world: World) -> WorkflowHandle[None, None]:
    return world.temporal.get_workflow_handle(slots_workflow_id(world.app_id))


async def end_four_calls_of_at_most_two(world: World) -> None:
    for left in range(4, 0, -1):
        await world.limit.wait_until(lambda left=left: len(world.limit.inside) == min(2, left))
        first = world.limit.inside[0]
        world.limit.let_go(first)
        await world.limit.wait_until(lambda first=first: first not in world.limit.inside)
    assert world.limit.most_inside == 2


async def test_at_most_the_limit_of_calls_is_under_way(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=2)])
    await world.open()
    for n in range(4):
        await world.send("work", n=n)
    await end_four_calls_of_at_most_two(world)


async def test_calls_with_and_without_slots_are_together_at_most_max_calls(world: World) -> None:
    world.engine = WorkflowEngine(world.temporal, EngineSettings(max_calls=2))
    world.gated("limited", concurrency=[Concurrency(limit=2)])
    world.gated("free")
    await world.open()
    for n in range(2):
        await world.send("limited", n=n)
        await world.send("free", n=n + 2)
    await end_four_calls_of_at_most_two(world)


async def test_a_call_costs_one_action_and_slots_cost_few(world: World) -> None:
    calls = 20

    @world.function("work", concurrency=[Concurrency(limit=2)], checkpointing=False)
    async def work(ctx: Context) -> None:
        world.run_ids["one"] = ctx.run_id
        for number in range(calls):
            await ctx.step.run(f"s{number}", lambda: 1)

    await world.open()
    began = time.monotonic()
    await world.send("work")
    await async_eventually(lambda: "one" in world.run_ids, "the run is called")
    async with asyncio.timeout(PATIENCE):
        await world.run("one").result()
    run: Counter[int] = await event_counts(world.run("one"))
    assert run[EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED] >= calls
    assert run[EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED] == 0
    assert run[EventType.EVENT_TYPE_MARKER_RECORDED] == 1, "the report of the run's end"
    slots = await event_counts(slots_of(world))
    renewals = (time.monotonic() - began) / (USE_SECONDS / 3)
    assert slots[EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED] <= 3 + renewals


async def test_a_process_that_stops_returns_its_slots_and_its_waiting_calls(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=1)])
    await world.open()
    for n in range(3):
        await world.send("work", n=n)
    await world.limit.wait_until(lambda: len(world.limit.inside) == 1)
    world.limit.open()
    await world.stop_workers()
    await world.start_workers()
    await world.limit.wait_until(lambda: set(world.limit.entered) == {0, 1, 2})
    await world.stop_workers()
    async with world.engine.make_workers([app_queue("other")], world._call)[0], asyncio.timeout(PATIENCE):
        await slots_of(world).result()
    described = await slots_of(world).describe()
    assert described.status is WorkflowExecutionStatus.COMPLETED
    task_timeout = described.raw_description.execution_config.default_workflow_task_timeout
    assert task_timeout.seconds < USE_SECONDS / 3


async def test_calls_of_a_removed_limit_are_made_by_a_new_process(world: World) -> None:
    """They wait in the task queue of the limit."""
    world.gated("work", concurrency=[Concurrency(limit=1)])
    await world.open()
    await world.stop_workers()
    await world.send("work", n=1)
    world.functions.clear()
    world.gated("work")
    world.engine = WorkflowEngine(world.temporal, world.engine._settings)
    await world.open()
    await world.limit.wait_for(1)


async def test_runs_of_a_function_that_no_process_serves_are_reported_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workflow_requests, "POLL_AGE", dt.timedelta(0))
    world.gated("old", concurrency=[Concurrency(limit=1)])
    await world.open()
    await world.stop_workers()
    await world.send("old", n=1)
    world.functions.clear()
    world.gated("new", concurrency=[Concurrency(limit=1)])
    world.engine = WorkflowEngine(world.temporal, world.engine._settings)
    await world.open()
    running = RunFilter(function_id=f"{world.app_id}-old", status=RunStatus.RUNNING)
    await async_eventually(lambda: world.engine._lists.count(running), "the list has the run")
    for _ in range(2):
        await world.engine._leased.refresh()
    warnings = [record.getMessage() for record in caplog.records if record.name == "durably.engine"]
    [warning] = [text for text in warnings if text.startswith("no process of its app serves")]
    assert f"the function '{world.app_id}-old', so its running runs (1) do not continue" in warning
    assert world.engine._leased.by_app[world.app_id] == [f"{world.app_id}-new"]


async def test_calls_of_a_limit_that_gets_a_key_stay_limited(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=1)])
    await world.open()
    await world.stop_workers()
    for n in range(3):
        await world.send("work", n=n)
    world.functions.clear()
    world.gated("work", concurrency=[Concurrency(limit=1, key="event.data.n")])
    world.engine = WorkflowEngine(world.temporal, world.engine._settings)
    await world.open()
    await world.limit.wait_until(lambda: len(world.limit.inside) == 1)
    world.limit.open()
    await world.limit.wait_until(lambda: set(world.limit.entered) == {0, 1, 2})
    assert world.limit.most_inside == 1


async def test_a_limit_with_other_options_stays_with_the_queue(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=1), Concurrency(limit=1, key="event.data.user")])
    await world.open()
    await world.send("work", n=1, user="a")
    await world.limit.wait_for(1)
    signals = (await event_counts(world.run(1)))[EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED]
    assert signals == 1, "granted"
