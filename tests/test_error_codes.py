"""The codes of errors in all places, and the shape of the engine's ``inngest/function.failed``."""

import pickle
from typing import Any

import pydantic
import pytest

import durably
from durably import Client, Context, ContextSync, errors
from durably.protocol import engine_errors
from durably.testing import TestEngine

from .execution.engine import engine_for
from .ids import stable_id

KNOWN = [
    (durably.NonRetriableError("no"), "non_retriable_error"),
    (durably.RetryAfterError("later", 1000), "retry_after_error"),
    (ValueError("odd"), "step_errored"),
]


def raising(error: BaseException) -> Any:
    def handler() -> None:
        raise error

    return handler


@pytest.mark.parametrize(("error", "code"), KNOWN, ids=stable_id)
@pytest.mark.parametrize("blocking", [False, True], ids=["async", "sync"])
async def test_a_run_that_ends_by_a_steps_error_has_the_code_of_that_error(
    error: BaseException, code: str, blocking: bool
) -> None:
    async def function(ctx: Context) -> None:
        await ctx.step.run("it", raising(error))

    def function_sync(ctx: ContextSync) -> None:
        ctx.step.run("it", raising(error))

    run = await engine_for(function_sync if blocking else function, blocking=blocking, max_attempts=1).run()
    assert run.output["code"] == code
    assert (run.output["name"], run.output["message"]) == (type(error).__name__, str(error))


def test_a_step_error_is_the_same_after_pickling() -> None:
    error = pickle.loads(pickle.dumps(durably.StepError("message", "Name", None, "non_retriable_error")))
    assert (error.message, error.name, error.stack, error.code) == ("message", "Name", None, "non_retriable_error")
    assert durably.StepError("message", "Name", None).code == "step_errored"
    assert durably.StepError("message", "Name", None, "of another SDK").code == "step_errored"


class Report(pydantic.BaseModel):
    reason: str


@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize("is_async", [True, False])
async def test_on_failure_may_return_a_pydantic_model(annotated: bool, is_async: bool) -> None:
    client = Client(app_id="app", is_production=False, serializer=durably.PydanticSerializer())

    async def report(ctx: Context) -> Any:
        return Report(reason=ctx.event.data["error"]["message"])

    def report_sync(ctx: ContextSync) -> Any:
        return Report(reason=ctx.event.data["error"]["message"])

    on_failure = report if is_async else report_sync
    if annotated:
        on_failure.__annotations__["return"] = Report

    @client.create_function(
        fn_id="fails",
        trigger=durably.TriggerEvent(event="go"),
        retries=0,
        on_failure=on_failure,  # type: ignore[arg-type]
    )
    async def fails(ctx: Context) -> None:
        raise ValueError("boom")

    async with TestEngine(client, [fails]) as engine:
        await engine.send(durably.Event(name="go"))
        await engine.run_until_idle()
        (handled,) = [run for run in engine.runs() if run.function_id == "app-fails-failure"]
        assert handled.output == {"reason": "boom"}


async def test_the_failure_event_has_the_shape_of_official_servers() -> None:
    client = Client(app_id="app", is_production=False)
    seen: list[Any] = []

    async def caught(ctx: Context) -> None:
        seen.append(ctx.event.data["error"])

    @client.create_function(fn_id="fails", trigger=durably.TriggerEvent(event="go"), retries=0, on_failure=caught)
    async def fails(ctx: Context) -> None:
        if ctx.event.data:
            await ctx.step.run("it", raising(durably.NonRetriableError("in a step")))
        raise KeyError("outside")

    async with TestEngine(client, [fails]) as engine:
        for data in ({}, {"in": "step"}):
            await engine.send(durably.Event(name="go", data=data))
            await engine.run_until_idle()
    for error, name in zip(seen, ("KeyError", "NonRetriableError"), strict=True):
        assert set(error) == {"error", "name", "message", "stack"}
        assert (error["error"], error["name"]) == ("invalid status code: 500", name)
        assert error["stack"].startswith("Traceback (most recent call last):")


def test_errors_of_engines_are_public() -> None:
    kinds = [kind for kind in vars(engine_errors).values() if isinstance(kind, type)]
    assert all(getattr(errors, kind.__name__) is kind for kind in kinds)
