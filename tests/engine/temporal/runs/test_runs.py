"""Runs as workflows: steps, waits, invocations, ends."""

import asyncio

import pytest
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError
from temporalio.exceptions import CancelledError

import durably
from durably.engine.temporal.messages import END

from ....temporal.dev_server import DevServer
from ..running_apps import make_client, on, running


async def test_a_cancelled_run_is_cancelled_in_both_views_with_its_reason(server: DevServer) -> None:
    app = make_client()
    started = asyncio.Event()

    @app.create_function(fn_id="slow", trigger=on(app, "slow"))
    async def slow(ctx: durably.Context) -> None:
        started.set()
        await ctx.step.sleep("nap", 60_000)

    async with running(server.address, app, slow) as on_temporal:
        by_engine, by_ui = await on_temporal.start("slow"), await on_temporal.start("slow")
        await started.wait()
        assert await on_temporal.engine.cancel_run(by_engine.id)
        await by_ui.handle.cancel(reason="by an operator")
        for run, reason in ((by_engine, "the run was cancelled by request"), (by_ui, "by an operator")):
            with pytest.raises(WorkflowFailureError) as failure:
                await run.result()
            assert isinstance(failure.value.cause, CancelledError)
            described = await run.handle.describe()
            assert described.status is WorkflowExecutionStatus.CANCELED
            error = await described.memo_value(END, type_hint=dict)
            assert error == {"name": "FunctionCancelledError", "message": reason}
            view = await on_temporal.engine.get_run(run.id)
            assert view is not None
            assert view.output is not None
            assert reason in str(bytes(view.output))
        assert not await on_temporal.engine.cancel_run(by_engine.id)


async def test_the_invoker_of_a_cancelled_run_gets_the_reason(server: DevServer) -> None:
    app = make_client()

    @app.create_function(fn_id="child", trigger=on(app, "child"), timeouts=durably.Timeouts(finish="1s"))
    async def child(ctx: durably.Context) -> None:
        await ctx.step.sleep("nap", 60_000)

    @app.create_function(fn_id="parent", trigger=on(app, "parent"), retries=0)
    async def parent(ctx: durably.Context) -> str:
        try:
            await ctx.step.invoke("ask", function=child)
        except durably.StepError as error:
            return error.message
        return "none"

    async with running(server.address, app, child, parent) as on_temporal:
        assert "timeouts.finish" in await (await on_temporal.start("parent")).result()
