"""Events and billed actions of runs, counted from their histories."""

import asyncio
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHistory

import durably

from ....temporal.dev_server import DevServer
from ....variants import variants
from ..running_apps import make_client, on, running

BILLED = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
    EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED,
    EventType.EVENT_TYPE_TIMER_STARTED,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED,
    EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED,
    EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED,
    EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED,
    EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES,
    EventType.EVENT_TYPE_MARKER_RECORDED,
}


def count_actions(history: WorkflowHistory) -> int:
    """Billed actions. Repeated attempts of activities are billed too."""
    started = (
        event.activity_task_started_event_attributes.attempt - 1
        for event in history.events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED
    )
    return sum(event.event_type in BILLED for event in history.events) + sum(started)


@pytest.mark.parametrize("number", variants([30, 1000], [30]))
@pytest.mark.parametrize(
    ("checkpointing", "most_events", "most_actions"),
    [(False, 6.1, 1.01), (True, 6.1, 1.01), (durably.Checkpointing(buffered_steps=20), 0.35, 0.06)],
    ids=["calls", "updates", "buffered"],
)
async def test_a_step_costs_at_most(
    server: DevServer, checkpointing: Any, most_events: float, most_actions: float, number: int
) -> None:
    app = make_client()

    @app.create_function(fn_id="steps", trigger=on(app, "steps"), checkpointing=checkpointing)
    async def steps(ctx: durably.Context) -> int:
        return sum([await ctx.step.run(f"s{n}", lambda: 1) for n in range(number)])

    @app.create_function(fn_id="none", trigger=on(app, "none"), checkpointing=checkpointing)
    async def none(ctx: durably.Context) -> None:
        pass

    async with running(server.address, app, steps, none) as on_temporal:
        empty, full = await on_temporal.start("none"), await on_temporal.start("steps")
        await empty.result()
        assert await full.result() == number
        before, after = await empty.history(), await full.history()
    events = (len(after.events) - len(before.events)) / number
    actions = (count_actions(after) - count_actions(before)) / number
    print(f"{events:.2f} events and {actions:.3f} actions a step; {len(before.events)} events without steps")
    assert events <= most_events
    assert actions <= most_actions


@pytest.mark.slow
async def test_workflow_tasks_of_busy_runs_find_waiting_polls(server: DevServer) -> None:
    """Otherwise the server writes tasks to its database, and reads them again."""
    app, runs = make_client(), 20

    @app.create_function(fn_id="steps", trigger=on(app, "steps"), checkpointing=False)
    async def steps(ctx: durably.Context) -> None:
        for number in range(3):
            await ctx.step.run(f"s{number}", lambda: 1)

    async with running(server.address, app, steps) as on_temporal:
        before = server.count_writes("CreateTasks")
        started = await asyncio.gather(*(on_temporal.start("steps") for _ in range(runs)))
        await asyncio.gather(*(run.result() for run in started))
        written = server.count_writes("CreateTasks") - before
    print(f"{written} of {4 * runs} tasks were written")
    assert written < runs


async def test_a_small_run_costs_little(server: DevServer) -> None:
    """A run with a step, a sleep, an invocation and a wait."""
    app = make_client()

    @app.create_function(fn_id="child", trigger=on(app, "child"))
    async def child(ctx: durably.Context) -> int:
        return await ctx.step.run("double", lambda: 4)

    @app.create_function(fn_id="small", trigger=on(app, "small"))
    async def small(ctx: durably.Context) -> Any:
        first = await ctx.step.run("first", lambda: 2)
        await ctx.step.sleep("nap", "10ms")
        second = await ctx.step.invoke("ask", function=child)
        await ctx.step.wait_for_event("go", event=f"{app.app_id}/go", timeout="10ms")
        return first + second

    async with running(server.address, app, small, child) as on_temporal:
        run = await on_temporal.start("small")
        assert await run.result() == 6
        history = await run.history()
    print(f"{len(history.events)} events, {count_actions(history)} actions")
    assert len(history.events) <= 58
    assert count_actions(history) <= 13
