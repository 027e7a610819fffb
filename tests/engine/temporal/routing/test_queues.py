"""Options that order calls: concurrency, throttle and priority."""

import asyncio
import datetime as dt
import time
from collections import Counter
from typing import Any

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHandle, WorkflowHistory
from ulid import ULID

from durably import Concurrency, Context, Priority, RetryAfterError, Throttle, Timeouts
from durably.engine.temporal.ids import make_run_id, run_workflow_id
from durably.engine.temporal.messages import RunInput
from durably.engine.temporal.routing import limit_queue, router
from durably.engine.temporal.routing.limit_queue import QueueChange, QueueCounts
from durably.engine.temporal.runs import calls, context

from ....variants import variants
from ....waiting import async_eventually
from .conftest import PATIENCE, World

SECOND = dt.timedelta(seconds=1)


async def test_at_most_the_limit_of_calls_is_under_way(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=2)])
    await world.open()
    for n in range(4):
        await world.send("work", n=n)
    await world.limit.wait_until(lambda: len(world.limit.inside) == 2)
    for _ in range(4):
        await world.limit.wait_until(lambda: bool(world.limit.inside))
        first = world.limit.inside[0]
        world.limit.let_go(first)
        await world.limit.wait_until(lambda first=first: first not in world.limit.inside)
    await world.limit.wait_until(lambda: len(world.limit.entered) == 4)
    assert world.limit.most_inside == 2


async def test_keys_do_not_wait_for_each_other(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=3), Concurrency(limit=1, key="event.data.user")])
    await world.open()
    for n, user in enumerate(["a", "a", "b"]):
        await world.send("work", n=n, user=user)
    await world.limit.wait_for(0, 2)
    world.limit.let_go(0)
    await world.limit.wait_for(1, 2)


async def test_functions_share_the_slots_of_a_scope(world: World) -> None:
    for name in ("one", "two"):
        world.gated(name, concurrency=[Concurrency(limit=1, key=f"'{world.app_id}'", scope="account")])
    await world.open()
    await world.send("one", n=1)
    await world.limit.wait_for(1)
    await world.send("two", n=2)
    world.limit.let_go(1)
    await world.limit.wait_for(2)
    assert world.limit.most_inside == 1


async def test_a_cancelled_run_frees_its_slot_and_the_queue_ends(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=1)])
    await world.open()
    await world.send("work", n=1)
    await world.limit.wait_for(1)
    await world.send("work", n=2)
    await world.engine.cancel_run(world.run_ids[1])
    await world.limit.wait_until(lambda: 2 in world.limit.inside)
    world.limit.open()
    async with asyncio.timeout(PATIENCE):
        await world.queue_of("work").result()


async def test_terminated_queue_continues_with_its_state(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.gated("work", concurrency=[Concurrency(limit=1, key="event.data.user")])
    await world.open()
    queue = world.queue_of("work", user="a")
    await world.send("work", n=1, user="a")
    await world.limit.wait_for(1)
    await world.send("work", n=2, user="a")
    await world.wait_for_counts(queue, QueueCounts(1, 1))
    await queue.terminate()
    world.limit.let_go(1)  # A call that ends finds the queue terminated.
    await world.limit.wait_for(2)
    await queue.terminate()
    await world.send("work", n=3, user="a")  # A call that begins also does.
    await world.wait_for_counts(queue, QueueCounts(1, 1))
    world.limit.let_go(2)
    await world.limit.wait_for(3)
    assert world.limit.most_inside == 1
    assert caplog.text.count("continues with its state") == 2


async def test_a_terminated_run_frees_its_slot(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_queue, "_INSPECTION_PERIOD", 300)
    world.gated("work", concurrency=[Concurrency(limit=1)])
    await world.open()
    await world.send("work", n=1)
    await world.limit.wait_for(1)
    await world.send("work", n=2)
    await world.run(1).terminate()
    await world.limit.wait_until(lambda: 2 in world.limit.inside)


async def test_a_failed_attempt_frees_its_slot(world: World) -> None:
    @world.function("work", concurrency=[Concurrency(limit=1)], retries=1)
    async def work(ctx: Context) -> None:
        world.seen.append([ctx.event.data["n"], ctx.attempt])
        await world.note()
        if ctx.event.data["n"] == 1 and ctx.attempt == 0:
            raise RetryAfterError("again", 5 * SECOND)

    await world.open()
    await world.send("work", n=1)
    await world.send("work", n=2)
    await world.wait_for_seen([1, 0], [2, 0], [1, 1])
    assert world.seen[-1] == [1, 1]


async def test_a_run_that_waits_too_long_for_its_start_is_cancelled(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=1)], timeouts=Timeouts(start=SECOND))

    @world.function("invoker")
    async def invoker(ctx: Context) -> Any:
        world.run_ids["invoker"] = ctx.run_id
        return await ctx.step.invoke("it", function=world.functions["work"], data={"n": 2})

    await world.open()
    await world.send("work", n=1)
    await world.limit.wait_for(1)
    await world.send("invoker")
    await world.wait_for_queue("work", QueueCounts(waiting=1, under_way=1))
    await world.wait_for_queue("work", QueueCounts(waiting=0, under_way=1))
    cancelled = await world.engine.wait_for_run(world.run_ids["invoker"])
    assert b"had not started by the time" in bytes(cancelled.output or b"")
    assert world.limit.entered == [1]


async def test_a_sender_with_a_wrong_clock_cancels_no_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "wall_clock", lambda: time.time_ns() // 1_000_000 - 3_600_000)
    world.gated("work", concurrency=[Concurrency(limit=1)], timeouts=Timeouts(start=60 * SECOND))
    await world.open()
    events = [await world.send("work", n=n) for n in range(2)]
    await world.wait_for_queue("work", QueueCounts(waiting=1, under_way=1))
    ids = [make_run_id(ULID.from_str(each).milliseconds, each, f"{world.app_id}-work") for each in events]
    handles = [world.temporal.get_workflow_handle(run_workflow_id(each)) for each in ids]
    timers = [
        event.timer_started_event_attributes.start_to_fire_timeout.seconds
        for handle in handles
        for event in (await handle.fetch_history()).events
        if event.HasField("timer_started_event_attributes")
    ]
    assert min(timers) > 30
    world.limit.open()


async def test_the_finish_timeout_of_a_run_begins_with_its_first_call(world: World) -> None:
    timeouts = Timeouts(finish=SECOND)
    limit = Concurrency(limit=1, key=f"'{world.app_id}'", scope="account")
    world.gated("first", concurrency=[limit])
    world.gated("late", concurrency=[limit], timeouts=timeouts)
    world.gated("other", timeouts=timeouts)
    await world.open()
    await world.send("first", n=1)
    await world.limit.wait_for(1)
    await world.send("late", n=2)
    await world.send("other", n=3)
    await world.limit.wait_for(1, 3)
    await world.engine.wait_for_run(world.run_ids[3])
    world.limit.let_go(1)
    await world.limit.wait_until(lambda: 2 in world.limit.inside)
    late = await world.engine.wait_for_run(world.run_ids[2])
    assert b"timeouts.finish" in bytes(late.output or b"")


async def test_a_call_whose_worker_is_lost_frees_its_slot(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_HEARTBEAT_TIMEOUT", dt.timedelta(milliseconds=500))
    monkeypatch.setattr("durably.engine.temporal.runs.activities._send", lambda seconds: asyncio.Event().wait())
    world.gated("work", concurrency=[Concurrency(limit=1)])
    await world.open()
    await world.send("work", n=1)
    await world.limit.wait_for(1)
    await world.send("work", n=2)
    await world.limit.wait_until(lambda: world.limit.entered.count(1) == 2)
    assert 2 not in world.limit.entered, "the next call of the older run takes the slot"
    monkeypatch.undo()
    world.limit.open()
    await world.limit.wait_until(lambda: 2 in world.limit.entered)


async def join_by_a_lost_worker(world: World, run_id: str, generation: int) -> None:
    """Join the queue for a call of a run that has no workers, and wait until it has a slot."""
    run = world.temporal.get_workflow_handle(run_workflow_id(run_id))
    started = (await run.fetch_history()).events[0].workflow_execution_started_event_attributes
    (given,) = await world.temporal.data_converter.decode(started.input.payloads, [RunInput])
    assert given.flow.queue is not None
    change = QueueChange(
        queue=given.flow.queue,
        function_id=given.function_id,
        run_id=run_id,
        queue_entry=given.flow.queue_entry,
        joined=(generation,),
        starts_run=True,
    )
    await world.engine._router.buckets.change_queue(change)
    async with world.engine.make_workers([], world._call)[0]:
        await async_eventually(
            run.fetch_history,
            "the run has its slot",
            is_right=lambda history: has_event(history, "EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED"),
        )


def has_event(history: WorkflowHistory, name: str) -> bool:
    return any(event.event_type == EventType.Value(name) for event in history.events)


@pytest.mark.parametrize("generation", variants([1, 7], [7]))
async def test_a_slot_that_a_lost_worker_asked_for_is_used_or_freed(world: World, generation: int) -> None:
    """The run's first workflow task has the grant before its call, whose generation is 1, requests a slot."""
    world.gated("work", concurrency=[Concurrency(limit=1, key="event.data.user")])
    await world.open()
    await world.stop_workers()
    event_id = await world.send("work", n=1, user="a")
    run_id = make_run_id(ULID.from_str(event_id).milliseconds, event_id, f"{world.app_id}-work")
    await join_by_a_lost_worker(world, run_id, generation)
    await world.start_workers()
    await world.limit.wait_for(1)
    await world.send("work", n=2, user="a")
    world.limit.let_go(1)
    await world.limit.wait_for(2)
    world.limit.open()
    await world.engine.wait_for_run(world.run_ids[2])


async def test_waiting_runs_go_in_the_order_of_their_priority(world: World) -> None:
    world.gated("work", concurrency=[Concurrency(limit=1)], priority=Priority(run="event.data.n * 60"))
    await world.open()
    await world.send("work", n=0)
    await world.limit.wait_for(0)
    for n in (1, 3, 2):
        await world.send("work", n=n)
    await world.wait_for_queue("work", QueueCounts(waiting=3, under_way=1))
    world.limit.open()
    await world.limit.wait_until(lambda: len(world.limit.entered) == 4)
    assert world.limit.entered == [0, 3, 2, 1]


async def test_throttled_runs_start_evenly_spaced(world: World) -> None:
    starts: list[float] = []

    @world.function("work", throttle=Throttle(limit=4, period=SECOND))
    async def work(ctx: Context) -> None:
        starts.append(time.monotonic())
        world.seen.append(ctx.event.data["n"])
        await world.note()

    await world.open()
    for n in range(3):
        await world.send("work", n=n)
    await world.wait_for_seen(0, 1, 2)
    assert starts[2] - starts[0] > 0.3


async def test_a_queue_keeps_its_state_in_another_execution(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_queue, "history_is_long", lambda: workflow.info().get_current_history_length() > 12)
    world.gated("work", concurrency=[Concurrency(limit=2)])
    await world.open()
    for n in range(8):
        await world.send("work", n=n)
    world.limit.open()
    await world.limit.wait_until(lambda: len(world.limit.entered) == 8)
    assert world.limit.most_inside <= 2
    async with asyncio.timeout(PATIENCE):
        await world.queue_of("work").result()
    assert max((await event_counts(world.queue_of("work"))).values()) < 20


@pytest.mark.parametrize(("held", "grants"), [(0, 2), (60_000, 1)])
async def test_a_run_keeps_its_slot_for_its_next_call(
    world: World, monkeypatch: pytest.MonkeyPatch, held: int, grants: int
) -> None:
    """A grant is a signal to the queue, which also returns the slot of the call before, and one to the run."""
    monkeypatch.setattr(context, "_MAX_HELD", held)
    world.gated("work", concurrency=[Concurrency(limit=1)], checkpointing=False)
    await world.open()
    await world.send("work", n=0)
    await world.limit.wait_for(0)
    await world.send("work", n=1)
    await world.wait_for_queue("work", QueueCounts(waiting=1, under_way=1))
    world.limit.open()
    async with asyncio.timeout(PATIENCE):
        await world.queue_of("work").result()
        await world.run(1).result()
    queue = await event_counts(world.queue_of("work"))
    run = await event_counts(world.run(1))
    signals, markers = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED, EventType.EVENT_TYPE_MARKER_RECORDED
    assert run[EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED] == 2
    assert queue[signals] == 2 * (grants + 1), "one more returns the last slot"
    assert (run[signals], run[markers] - 1) == (grants, grants + 1), "one more marker is the report of the run's end"


async def event_counts(workflow: WorkflowHandle[Any, Any]) -> Counter[int]:
    history = await workflow.fetch_history()
    return Counter(event.event_type for event in history.events)
