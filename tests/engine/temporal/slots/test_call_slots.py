"""The worker that makes the calls of a run, and workers that stop."""

import asyncio

import pytest
from temporalio.worker import SlotPermit

import durably
from durably.engine.core.answers import Answer
from durably.engine.core.call_body import CallData
from durably.engine.temporal.messages import CallInput
from durably.engine.temporal.runs.call_slots import CallSlots

from ....temporal.dev_server import DevServer
from ..running_apps import make_client, on, running
from ..runs.test_calls import checkpoint


async def test_a_call_comes_with_the_answer_to_a_workflow_task(
    server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker need not poll the server for it."""

    async def reserve_none(*_: object) -> SlotPermit:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    monkeypatch.setattr(CallSlots, "reserve_slot", reserve_none)
    app = make_client()

    @app.create_function(fn_id="steps", trigger=on(app, "steps"), checkpointing=False)
    async def steps(ctx: durably.Context) -> int:
        return sum([await ctx.step.run(f"s{n}", lambda: 1) for n in range(3)])

    async with running(server.address, app, steps) as on_temporal, asyncio.timeout(30):
        assert await (await on_temporal.start("steps")).result() == 3


async def test_a_worker_that_stops_executes_workflows_and_makes_no_more_calls(server: DevServer) -> None:
    app = make_client()
    entered, may_end = asyncio.Event(), asyncio.Event()
    stopping, called_elsewhere = True, False

    @app.create_function(fn_id="steps", trigger=on(app, "steps"))
    async def steps(ctx: durably.Context) -> str:
        return await ctx.step.run("a", lambda: "from the app")

    async with running(server.address, app, steps) as on_temporal, asyncio.timeout(60):

        async def call(call_input: CallInput, data: CallData) -> Answer:
            nonlocal called_elsewhere
            if not stopping:
                called_elsewhere = True
                return await on_temporal.call_function(call_input, data)
            assert not entered.is_set(), "a second call"
            entered.set()
            await may_end.wait()
            await on_temporal.engine.checkpoint(data.run_id, checkpoint(call_input.call.generation, b'"stored"'))
            return await on_temporal.call_function(call_input, data)

        on_temporal.caller = call
        first = await on_temporal.start("steps")
        await entered.wait()
        slots, *_ = on_temporal.workers.slots
        slots.close()
        unused = asyncio.create_task(slots.wait_until_unused())
        second = await on_temporal.start("steps")
        assert not unused.done()
        may_end.set()
        await unused
        assert await first.result() in ("stored", "from the app")
        assert "WORKFLOW_EXECUTION_UPDATE_ACCEPTED" in await first.event_types()
        stopping = False
        await asyncio.gather(*(worker.shutdown() for worker in on_temporal.workers))
        async with on_temporal.working():
            assert await second.result() == "from the app"
        assert called_elsewhere


class Released:
    def __init__(self, permit: SlotPermit, slot_info: object = None) -> None:
        self.permit = permit
        self.slot_info = slot_info


async def test_a_slot_is_free_again_after_its_call() -> None:
    slots = CallSlots(1)
    context: object = None
    permit = await slots.reserve_slot(context)  # type: ignore[arg-type]
    assert slots.try_reserve_slot(context) is None  # type: ignore[arg-type]
    waiting = asyncio.create_task(slots.reserve_slot(context))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert not waiting.done()
    await asyncio.to_thread(slots.release_slot, Released(permit))  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        await waiting


async def test_a_stop_waits_for_polls_after_a_returned_call() -> None:
    """They may have received the returned call."""
    slots = CallSlots(2)
    context: object = None
    call, poll = [await slots.reserve_slot(context) for _ in range(2)]  # type: ignore[arg-type]
    slots.mark_slot_used(context)  # type: ignore[arg-type]
    slots.close()
    async with asyncio.timeout(0.5):
        await slots.wait_until_polls_are_quiet()  # No call was returned.
    slots.release_slot(Released(call, "a call"))  # type: ignore[arg-type]
    waiting = asyncio.create_task(slots.wait_until_polls_are_quiet())
    await asyncio.sleep(0.1)
    assert not waiting.done()
    slots.release_slot(Released(poll))  # type: ignore[arg-type]
    async with asyncio.timeout(0.5):
        await waiting
