"""Options that decide about events: idempotency, rate limit, debounce, batches and singletons."""

import asyncio
import base64
import datetime as dt
import gc
import os
from typing import Any

import pytest
from temporalio.client import WorkflowHandle
from ulid import ULID

from durably import Batch, Cancel, Context, Debounce, Function, RateLimit, Singleton, StepError
from durably.engine.core.flow.buckets import BucketKind
from durably.engine.core.flow.config import read_flow
from durably.engine.core.inputs import WaitResolved
from durably.engine.model.runs import RunStatus
from durably.engine.temporal.ids import bucket_workflow_id, make_run_id, run_workflow_id, wait_workflow_id
from durably.engine.temporal.routing import bucket as bucket_module
from durably.engine.temporal.routing import router
from durably.engine.temporal.routing.workflows import wait_key
from durably.protocol.opcodes import hash_step_id

from ....waiting import async_eventually
from .conftest import PATIENCE, World

SECOND = dt.timedelta(seconds=1)
MINUTE = dt.timedelta(minutes=1)


@pytest.mark.parametrize(
    "options",
    [
        {"rate_limit": RateLimit(limit=1, period=MINUTE, key="event.data.key")},
        {"idempotency": "event.data.key"},
    ],
)
async def test_events_beyond_the_limit_of_their_key_are_dropped(world: World, options: dict[str, Any]) -> None:
    world.recording("work", **options)
    await world.open()
    for n, key in enumerate("aaba"):
        await world.send("work", n=n, key=key)
    await world.wait_for_seen(0, 2)


async def test_a_repeated_event_is_not_counted_again(world: World) -> None:
    """Its sender has not received the acknowledgement."""
    world.recording("work", idempotency="event.data.order", rate_limit=RateLimit(limit=1, period=MINUTE))
    await world.open()
    seed = f"1700000000000,{base64.b64encode(os.urandom(10)).decode()}"
    for _ in range(2):
        await world.send("work", seed=seed, n=0, order="a")
    await world.send("work", n=1, order="b")
    await world.wait_for_seen(0)
    world.recording("work", idempotency="event.data.order")
    await world.sync()
    await world.send("work", n=2, order="b")
    await world.wait_for_seen(0, 2)


async def test_debounce_starts_one_run_with_the_last_event(world: World) -> None:
    world.recording("work", debounce=Debounce(period=5 * SECOND, key="event.data.doc"))
    await world.open()
    for n, doc in enumerate("aab"):
        await world.send("work", n=n, doc=doc)
    await world.wait_for_seen(1, 2)


async def test_batches_close_when_they_are_full_or_their_time_is_up(world: World) -> None:
    world.recording("work", batch_events=Batch(max_size=3, timeout=5 * SECOND, if_exp="event.data.n < 9"))
    await world.open()
    for n in (0, 1, 2, 9, 3, 4):
        await world.send("work", n=n)
    await world.wait_for_seen([0, 1, 2], 9, [3, 4])


async def test_a_singleton_skips_events_until_its_run_ends(world: World) -> None:
    world.gated("work", singleton=Singleton(mode="skip", key="event.data.user"))
    await world.open()
    await world.send("work", n=1, user="a")
    await world.send("work", n=2, user="b")
    await world.limit.wait_for(1, 2)
    await world.send("work", n=3, user="a")
    world.limit.let_go(1)
    await world.engine.wait_for_run(world.run_ids[1])
    await world.send("work", n=4, user="a")
    await world.limit.wait_for(2, 4)
    assert sorted(world.limit.entered) == [1, 2, 4]


async def test_a_terminated_run_frees_its_singleton(world: World) -> None:
    world.gated("work", singleton=Singleton(mode="skip"))
    await world.open()
    await world.send("work", n=1)
    await world.limit.wait_for(1)
    await world.run(1).terminate()
    await world.send("work", n=2)
    await world.limit.wait_until(lambda: 2 in world.limit.inside)


async def test_a_newer_run_of_a_singleton_cancels_the_one_before(world: World) -> None:
    world.gated("work", singleton=Singleton(mode="cancel"))
    await world.open()
    await world.send("work", n=1)
    await world.limit.wait_for(1)
    await world.send("work", n=2)
    await world.limit.wait_until(lambda: 2 in world.limit.inside)
    cancelled = await world.engine.wait_for_run(world.run_ids[1])
    assert b"a newer run replaced it" in bytes(cancelled.output or b"")


async def test_steps_that_invoke_a_function_with_buckets_get_its_result(world: World) -> None:
    late = world.recording("late", debounce=Debounce(period=SECOND))
    single = world.gated("single", singleton=Singleton(mode="skip"))

    @world.function("invoker")
    async def invoker(ctx: Context) -> object:
        world.run_ids["invoker"] = ctx.run_id

        async def invoke(step_id: str, function: Function[Any], n: int) -> object:
            try:
                return await ctx.step.invoke(step_id, function=function, data={"n": n})
            except StepError as error:
                world.limit.open()
                return error.name

        results = await asyncio.gather(invoke("first", single, 1), invoke("second", single, 1), invoke("late", late, 7))
        return sorted(map(str, results))

    await world.open()
    await world.send("invoker")
    await world.limit.wait_until(lambda: 1 in world.limit.entered)
    run = await world.engine.wait_for_run(world.run_ids["invoker"])
    assert bytes(run.output or b"") == b'["1","7","FunctionSkippedError"]'


async def test_the_result_of_an_invocation_that_a_lost_worker_made_is_used(world: World) -> None:
    """The worker invoked the function, and ended before it stored its workflow task. The run gets the result first."""
    held = world.recording("held", debounce=Debounce(period=60 * MINUTE))

    @world.function("invoker")
    async def invoker(ctx: Context) -> Any:
        world.run_ids["invoker"] = ctx.run_id
        await ctx.step.run("first", lambda: world.limit.pass_through(1))
        return await ctx.step.invoke("it", function=held, data={"n": 1})

    await world.open()
    await world.send("invoker")
    await world.limit.wait_for(1)
    run_id = world.run_ids["invoker"]
    result = WaitResolved(hash_step_id("it"), b'{"data":7}')
    await world.temporal.get_workflow_handle(run_workflow_id(run_id)).signal("resolve", result)
    world.limit.open()
    assert bytes((await world.engine.wait_for_run(run_id)).output or b"") == b"7"


async def test_event_is_accepted_while_no_worker_runs_buckets(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(router, "SENDERS_TIME", dt.timedelta(milliseconds=100))
    monkeypatch.setattr(router, "_MAX_DELIVERY_SECONDS", 0.2)
    world.recording("work", idempotency="event.data.order")
    await world.open()
    await world.stop_workers()
    await world.send("work", n=1, order="a")
    gc.collect()
    assert "never retrieved" not in caplog.text
    await world.start_workers()
    await world.wait_for_seen(1)


async def test_event_cancels_a_run_that_waits_for_a_worker_of_its_buckets(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "SENDERS_TIME", dt.timedelta(milliseconds=100))
    monkeypatch.setattr(router, "_MAX_DELIVERY_SECONDS", 0.2)
    stop = Cancel(event=world.event("stop"), if_exp="event.data.n == async.data.n")
    world.gated("work", idempotency="event.data.order", cancel=[stop])
    await world.open()
    await world.send("work", n=0, order="a")
    await world.limit.wait_for(0)
    await world.stop_workers()
    accepted = await world.send("work", n=1, order="b")
    await world.send("work", n=2, order="a")  # Its bucket drops this one.
    await world.send("stop", n=1)
    await world.start_workers()
    run_id = make_run_id(ULID.from_str(accepted).milliseconds, accepted, f"{world.app_id}-work")
    await async_eventually(lambda: world.engine.get_run(run_id), "the run has started")
    async with asyncio.timeout(PATIENCE):
        assert (await world.engine.wait_for_run(run_id)).status is RunStatus.CANCELLED
    for n in (1, 2):
        key = wait_key(stop.if_exp, {"data": {"n": n}})
        left = world.temporal.get_workflow_handle(wait_workflow_id(stop.event, key.path, key.value))
        async with asyncio.timeout(PATIENCE):
            await left.result()


async def test_a_bucket_keeps_its_state_in_another_execution(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "history_is_long", lambda: True)
    world.recording("work", batch_events=Batch(max_size=3, timeout=MINUTE))
    await world.open()
    for n in range(6):
        await world.send("work", n=n)
    await world.wait_for_seen([0, 1, 2], [3, 4, 5])


async def test_a_batch_that_closes_while_its_function_is_paused_is_skipped(world: World) -> None:
    world.recording("work", batch_events=Batch(max_size=2, timeout=SECOND))
    await world.open()
    event_id = await world.send("work", n=0)
    await world.engine.pause_function(f"{world.app_id}-work")
    runs = await async_eventually(lambda: world.engine.event_runs(event_id), "the event has its run")
    assert [run.status for run in runs] == [RunStatus.SKIPPED]
    assert world.seen == []


def bucket_of(world: World, fn_id: str, kind: BucketKind) -> WorkflowHandle[Any, Any]:
    bucket = read_flow(world.config_of(fn_id)).bucket(kind, {"data": {}}, 0)
    assert bucket is not None
    return world.temporal.get_workflow_handle(bucket_workflow_id(bucket.function_id, kind, bucket.key))


async def test_terminated_buckets_continue_with_their_state(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.recording("limited", rate_limit=RateLimit(limit=1, period=MINUTE))
    world.recording("batched", batch_events=Batch(max_size=2, timeout=MINUTE))
    await world.open()
    limited, batched = bucket_of(world, "limited", BucketKind.RATE_LIMIT), bucket_of(world, "batched", BucketKind.BATCH)
    await world.send("batched", n=0)
    await world.send("limited", n=1)
    for bucket in (limited, batched):
        await bucket.terminate()
    await world.send("limited", n=2)  # The limit counts the earlier event.
    await world.send("batched", n=3)
    await world.wait_for_seen(1, [0, 3])
    assert caplog.text.count("was terminated on Temporal, and continues with its state") == 2
