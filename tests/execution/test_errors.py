"""Errors of steps and functions: attempts, what may be caught, and what is left of an error on its way."""

import asyncio
import contextlib
import datetime as dt
import logging
import sys
from typing import Any

import pytest

import durably
from durably import Context, ContextSync
from durably.errors import AsyncUnsupportedError
from durably.protocol.limits import MAX_ERROR_CHARACTERS

from .engine import complete, engine_for, fail


class OddError(Exception):
    pass


def explode() -> None:
    raise OddError("boom")


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_step_is_tried_again_and_its_last_error_can_be_caught(blocking: bool) -> None:
    attempts = []

    def failing(ctx: Context | ContextSync) -> None:
        attempts.append(ctx.attempt)
        explode()

    async def function(ctx: Context) -> Any:
        try:
            await ctx.step.run("it", failing, ctx)
        except durably.StepError as error:
            return [error.name, error.message, error.stack]

    def function_sync(ctx: ContextSync) -> Any:
        try:
            ctx.step.run("it", failing, ctx)
        except durably.StepError as error:
            return [error.name, error.message, error.stack]

    for handler in (function, function_sync):
        attempts.clear()
        run = await engine_for(handler, blocking=blocking).run()
        assert attempts == [0, 1, 2]
        assert [answer.ops[0]["op"] for answer in run.answers[:-1]] == ["StepError", "StepError", "StepFailed"]
        assert [answer.no_retry for answer in run.answers[:-1]] == [False] * 3
        name, message, stack = run.output
        assert (name, message) == ("OddError", "boom")
        assert _frames(stack) == ["failing", "explode"]


async def test_an_uncaught_step_error_fails_the_run_at_once_with_the_steps_own_error() -> None:
    async def function(ctx: Context) -> None:
        await ctx.step.run("it", explode)

    run = await engine_for(function).run()
    assert (run.answers[-1].status, run.answers[-1].no_retry) == (500, True)
    assert run.output["code"] == "step_errored"
    assert (run.output["name"], run.output["message"]) == ("OddError", "boom")
    assert _frames(run.output["stack"]) == ["explode"]


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UnprintableError(), "UnprintableError.__str__ raised ValueError"),
        (OddError("half a pair: \ud800"), "half a pair: \\ud800"),
    ],
    ids=["unprintable", "surrogate"],
)
async def test_error_without_a_proper_text_can_be_caught(
    error: Exception, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)  # Reports of test processes cannot carry the text.

    async def function(ctx: Context) -> Any:
        def fails() -> None:
            raise error

        try:
            await ctx.step.run("it", fails)
        except durably.StepError as caught:
            return [caught.name, caught.message]

    assert await complete(function) == [type(error).__name__, message]


async def test_a_function_is_tried_again_as_a_whole() -> None:
    ran = []

    async def function(ctx: Context) -> None:
        await ctx.step.run("it", ran.append, 1)
        raise OddError(f"attempt {ctx.attempt}")

    run = await engine_for(function).run()
    assert ran == [1]
    assert (run.status, run.output["message"]) == ("Failed", "attempt 2")
    assert (run.output["code"], run.output["name"]) == ("unknown", "OddError")
    assert _frames(run.output["stack"]) == ["function"]


@pytest.mark.parametrize("where", ["step", "function"])
async def test_non_retriable_error_ends_the_run(where: str) -> None:
    def fatal() -> None:
        raise durably.NonRetriableError("no use")

    async def function(ctx: Context) -> None:
        if where == "step":
            await ctx.step.run("it", fatal)
        fatal()

    run = await engine_for(function).run()
    assert run.answers[0].no_retry
    assert (run.output["name"], run.output["message"]) == ("NonRetriableError", "no use")
    if where == "step":
        assert run.answers[0].found() == [("StepFailed", "it")]
    assert len(run.answers) == (2 if where == "step" else 1)


@pytest.mark.parametrize("where", ["step", "function"])
@pytest.mark.parametrize("delay", ["1h", 3_600_000, lambda: dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)])
async def test_retry_after_error_sets_the_delay(where: str, delay: Any) -> None:
    def later() -> None:
        raise durably.RetryAfterError("busy", delay() if callable(delay) else delay)

    raised = []

    async def function(ctx: Context) -> None:
        if where == "function" and not raised:
            raised.append(1)
            later()
        await ctx.step.run("it", later if ctx.attempt == 0 and where == "step" else str)

    run = await engine_for(function).run()
    assert run.status == "Completed"
    assert not run.answers[0].no_retry
    [text] = run.retry_after
    if callable(delay):
        timestamp = dt.datetime.fromisoformat(text)
        assert abs(timestamp - dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)).total_seconds() < 60
    else:
        assert text == "3600"
    if where == "step":
        assert run.answers[0].found() == [("StepError", "it")]


async def test_quiet_errors_stay_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def function(ctx: Context) -> None:
        raise durably.NonRetriableError("expected", quiet=True)

    await fail(function)
    assert caplog.records == []


async def test_a_group_of_final_errors_is_final() -> None:
    async def function(ctx: Context) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.step.run("a", explode))
            group.create_task(ctx.step.run("b", explode))

    run = await engine_for(function).run()
    assert run.output["name"] == "ExceptionGroup"
    assert run.answers[-1].no_retry


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_step_in_a_step_is_refused_even_if_the_handler_swallows_errors(blocking: bool) -> None:
    async def function(ctx: Context) -> None:
        async def outer() -> None:
            with contextlib.suppress(Exception):
                await ctx.step.run("inner", str)

        await ctx.step.run("outer", outer)

    def function_sync(ctx: ContextSync) -> None:
        def outer() -> None:
            with contextlib.suppress(Exception):
                ctx.step.run("inner", str)

        ctx.step.run("outer", outer)

    for handler in (function, function_sync):
        run = await engine_for(handler, blocking=blocking).run()
        assert run.answers[0].found() == [("StepFailed", "outer")]
        assert run.output["name"] == "StepNestedError"
        assert 'step "inner" was called inside step "outer"' in run.output["message"]


@pytest.mark.parametrize("where", ["handler", "function"])
async def test_coroutines_in_a_sync_function_are_refused(where: str) -> None:
    async def later() -> None: ...

    def function(ctx: ContextSync) -> Any:
        return ctx.step.run("it", later) if where == "handler" else later()

    run = await engine_for(function, blocking=True).run()
    assert run.output["name"] == AsyncUnsupportedError.__name__
    assert "make the function async" in run.output["message"]


async def test_unknown_target_step_fails_the_attempt() -> None:
    async def function(ctx: Context) -> None:
        await ctx.step.run("it", str)

    def function_sync(ctx: ContextSync) -> None:
        ctx.group.parallel([lambda: ctx.step.run("it", str)])

    for handler in (function, function_sync):
        engine = engine_for(handler)
        run = await engine.run()
        empty = run.state_at(0)
        answer = await engine.call(empty, target="0" * 40)
        assert (answer.status, answer.no_retry) == (500, False)
        assert (answer.json["name"], answer.json["code"]) == ("StepUnexpectedError", "step_unexpected")


async def test_swallowing_the_interrupt_changes_nothing() -> None:
    """A bare ``except`` around a step of a sync function catches what ends the call."""
    ran = []

    def function(ctx: ContextSync) -> Any:
        for number in range(3):
            try:
                ctx.step.run(f"step-{number}", ran.append, number)
            except:  # noqa: E722
                continue
        return "end"

    run = await engine_for(function, blocking=True).run()
    assert (run.output, ran) == ("end", [0, 1, 2])
    assert [answer.found() for answer in run.answers[:-1]] == [[("StepRun", f"step-{n}")] for n in range(3)]


async def test_a_handler_cancelled_by_its_own_code_fails_its_step() -> None:
    async def cancelled() -> None:
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task

    async def function(ctx: Context) -> Any:
        try:
            await ctx.step.run("it", cancelled)
        except durably.StepError as error:
            return error.message

    assert "cancelled" in await complete(function)


def _frames(stack: str) -> list[str]:
    """The names of the functions in a traceback, outermost first."""
    return [line.rpartition(", in ")[2] for line in stack.splitlines() if line.startswith('  File "')]


@pytest.mark.parametrize("where", ["step", "function"])
async def test_sys_exit_fails_the_call_and_not_the_server(where: str) -> None:
    def leave() -> None:
        sys.exit(3)

    async def function(ctx: Context) -> None:
        if where == "step":
            await ctx.step.run("it", leave)
        leave()

    def function_sync(ctx: ContextSync) -> None:
        if where == "step":
            ctx.step.run("it", leave)
        leave()

    for handler in (function, function_sync):
        error = await fail(handler)
        assert error["name"] == "RuntimeError"
        assert error["message"].startswith("sys.exit(3) was called")
        assert "leave" in error["stack"]


async def test_errors_in_the_log_name_the_run(caplog: pytest.LogCaptureFixture) -> None:
    async def function(ctx: Context) -> None:
        await ctx.step.run("it", int, "x")

    await fail(function, max_attempts=1)
    messages = [record.getMessage() for record in caplog.records]
    assert 'step "it" of function "app-function", run 01RUN, raised ValueError' in messages


async def test_the_ends_of_a_long_message_and_traceback_are_kept() -> None:
    async def function(ctx: Context) -> list[str | None]:
        def failing() -> None:
            raise ValueError("first" + "x" * 30_000_000 + "last")

        try:
            await ctx.step.run("it", failing)
        except durably.StepError as error:
            return [error.message, error.stack]
        raise AssertionError("the step did not fail")

    run = await engine_for(function).run()
    message, stack = run.output
    assert message.startswith("firstx")
    assert message.endswith("xlast")
    assert stack.startswith("Traceback")
    assert stack.endswith("last\n")
    for text in (message, stack):
        assert MAX_ERROR_CHARACTERS - 100 <= len(text) <= MAX_ERROR_CHARACTERS
        assert "characters are not kept" in text
