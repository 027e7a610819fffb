"""Sizes that Temporal limits: outputs, events, parallel steps, memos, histories."""

import asyncio
from typing import Any

import msgspec
import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError

import durably
from durably.engine.core.calls import ReportedOps
from durably.engine.temporal.runs import run_workflow
from durably.engine.temporal.runs.contents import CONTENTS
from durably.engine.temporal.runs.sizes import (
    MAX_EVENT_BYTES,
    MAX_OUTPUT_BYTES,
    MAX_PAYLOAD_BYTES,
    fit_answer,
    fit_end_event,
    size_of,
    split_steps,
)
from durably.protocol.engine_errors import EventInvalidError
from durably.protocol.opcodes import Op, Opcode

from ....temporal.dev_server import DevServer
from ....variants import variants
from ....waiting import async_eventually
from ..running_apps import make_client, on, running

MEGABYTE = 1_000_000


def step(name: str, size: int, **opts: Any) -> Op:
    data = msgspec.Raw(b'"' + b"x" * (size - 2) + b'"')
    return Op(id=name, op=Opcode.STEP_RUN, display_name=name, data=data, opts=opts or None)


def test_an_answer_that_is_too_large_is_checkpointed_in_parts() -> None:
    planned = Op(id="p", op=Opcode.STEP_PLANNED)
    fitted = fit_answer(ReportedOps([step("a", MEGABYTE), step("b", MEGABYTE), planned]))
    assert [[op.id for op in steps] for steps in fitted.checkpoints] == [["a"], ["b"]]
    assert isinstance(fitted.answer, ReportedOps)
    assert [(op.id, op.op) for op in fitted.answer.ops] == [
        ("p", Opcode.STEP_PLANNED),
        ("", Opcode.DISCOVERY_REQUEST),
    ]


def test_no_part_of_an_answer_is_over_the_limit() -> None:
    large = step("a", MAX_OUTPUT_BYTES, input=["y" * MEGABYTE])
    fitted = fit_answer(ReportedOps([large, step("b", MAX_OUTPUT_BYTES)]))
    assert all(size_of(steps) <= MAX_PAYLOAD_BYTES for steps in fitted.checkpoints)
    assert len(split_steps([step(str(n), 100_000) for n in range(38)])) == 3


def test_end_event_omits_fields_that_make_it_too_large() -> None:
    event = {"name": "n", "data": "x" * 600_000}
    fields = {"_inngest": {"status": "Failed"}, "error": {"message": "m"}, "event": event, "events": [event] * 2}
    data, omitted = fit_end_event(msgspec.json.encode(fields))
    assert omitted == ["events"]
    kept = {**fields, "events": None, "_inngest": {"status": "Failed", "omitted": ["events"]}}
    assert msgspec.json.decode(data) == kept


async def test_a_step_whose_output_is_too_large_fails_once(server: DevServer) -> None:
    app = make_client()
    executions = 0

    def large() -> str:
        nonlocal executions
        executions += 1
        return "x" * MAX_OUTPUT_BYTES

    @app.create_function(fn_id="large", trigger=on(app, "large"))
    async def function(ctx: durably.Context) -> str:
        try:
            await ctx.step.run("big", large)
        except durably.StepError as error:
            return error.message
        return "none"

    async with running(server.address, app, function) as on_temporal:
        run = await on_temporal.start("large")
        assert (await run.result()).startswith(
            f"step 'big' returned {MAX_OUTPUT_BYTES + 2} bytes; at most {MAX_OUTPUT_BYTES} are allowed"
        )
    assert executions == 1


async def test_parallel_outputs_may_be_larger_together_than_a_payload(server: DevServer) -> None:
    app = make_client()
    executions: list[int] = []

    def large(number: int) -> str:
        executions.append(number)
        return "x" * MEGABYTE

    @app.create_function(fn_id="large", trigger=on(app, "large"))
    async def function(ctx: durably.Context) -> int:
        return len("".join(await asyncio.gather(*(ctx.step.run(f"s{n}", large, n) for n in range(4)))))

    async with running(server.address, app, function) as on_temporal:
        assert await (await on_temporal.start("large")).result() == 4 * MEGABYTE
    assert sorted(executions) == [0, 1, 2, 3]


async def test_a_return_value_that_is_too_large_fails_the_run(server: DevServer) -> None:
    app = make_client()
    calls = 0

    @app.create_function(fn_id="large", trigger=on(app, "large"), retries=3)
    async def function(ctx: durably.Context) -> str:
        nonlocal calls
        calls += 1
        return "x" * MAX_OUTPUT_BYTES

    async with running(server.address, app, function) as on_temporal:
        with pytest.raises(WorkflowFailureError) as failure:
            await (await on_temporal.start("large")).result()
        assert isinstance(failure.value.cause, ApplicationError)
        assert failure.value.cause.type == "OutputTooLargeError"
        assert str(MAX_OUTPUT_BYTES) in failure.value.cause.message
        with pytest.raises(EventInvalidError, match="more than the 1000000 that an event may have"):
            await on_temporal.start("large", {"text": "x" * MAX_EVENT_BYTES})
    assert calls == 1


@pytest.mark.parametrize("megabytes", variants([4, 32], [4]))
async def test_a_large_state_survives_the_restart_of_its_worker(server: DevServer, megabytes: int) -> None:
    app = make_client()
    executions: list[int] = []

    def large(number: int) -> str:
        executions.append(number)
        return chr(97 + number % 26) * MEGABYTE

    @app.create_function(fn_id="large", trigger=on(app, "large"))
    async def function(ctx: durably.Context) -> list[str]:
        found = [await ctx.step.run(f"s{n}", large, n) for n in range(megabytes)]
        await ctx.step.wait_for_event("go", event=f"{app.app_id}/go", timeout="1h")
        return [text[:2] for text in found]

    async with running(server.address, app, function) as on_temporal:
        run = await on_temporal.start("large")
        await async_eventually(run.event_types, "a timer is set", is_right=lambda types: "TIMER_STARTED" in types)
        await asyncio.gather(*(worker.shutdown() for worker in on_temporal.workers))
        CONTENTS.clear()
        async with on_temporal.working():
            await on_temporal.start("go")
            assert await run.result() == [chr(97 + n % 26) * 2 for n in range(megabytes)]
    assert sorted(executions) == list(range(megabytes))


async def test_a_run_near_the_limit_of_histories_fails(server: DevServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_workflow, "MAX_HISTORY_EVENTS", 40)
    app = make_client()

    @app.create_function(fn_id="long", trigger=on(app, "long"))
    async def function(ctx: durably.Context) -> None:
        for n in range(40):
            await ctx.step.run(f"s{n}", lambda: 1)

    async with running(server.address, app, function) as on_temporal:
        with pytest.raises(WorkflowFailureError) as failure:
            await (await on_temporal.start("long")).result()
        assert isinstance(failure.value.cause, ApplicationError)
        assert failure.value.cause.type == "HistoryTooLargeError"
        assert "events" in failure.value.cause.message


async def test_a_run_that_soon_gets_no_events_any_more_fails(
    server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_workflow, "MAX_SIGNALS", 3)
    app = make_client()

    @app.create_function(fn_id="wait", trigger=on(app, "wait"))
    async def function(ctx: durably.Context) -> None:
        longer = "async.data.n > size(event.data.text)"  # Too much of the event for the wait's workflow.
        await ctx.step.wait_for_event("w", event=f"{app.app_id}/tick", if_exp=longer, timeout="1h")

    async with running(server.address, app, function) as on_temporal:
        run = await on_temporal.start("wait", {"text": "x" * 5000})
        await async_eventually(run.event_types, "a timer is set", is_right=lambda types: "TIMER_STARTED" in types)
        for _ in range(3):
            await on_temporal.engine.receive_events(
                msgspec.json.encode({"name": f"{app.app_id}/tick", "data": {"n": 1}})
            )
        with pytest.raises(WorkflowFailureError) as failure:
            await asyncio.wait_for(run.result(), 30)
        assert isinstance(failure.value.cause, ApplicationError)
        assert failure.value.cause.type == "TooManySignalsError"
        assert "several runs" in failure.value.cause.message


async def test_a_run_with_more_steps_than_updates_are_possible_completes() -> None:
    server = DevServer(settings={"history.maxTotalUpdates": 3})
    server.start()
    app, executions = make_client(), list[int]()

    @app.create_function(fn_id="long", trigger=on(app, "long"))
    async def function(ctx: durably.Context) -> int:
        for n in range(6):
            await ctx.step.run(f"s{n}", lambda n=n: executions.append(n))
        texts = await asyncio.gather(*(ctx.step.run(f"large{n}", large, n) for n in range(3)))
        return len("".join(texts))

    def large(number: int) -> str:
        executions.append(number)
        return "x" * MEGABYTE

    try:
        async with running(server.address, app, function) as on_temporal:
            run = await on_temporal.start("long")
            assert await run.result() == 3 * MEGABYTE
            assert sorted(executions) == [0, 0, 1, 1, 2, 2, 3, 4, 5]
    finally:
        server.kill()
