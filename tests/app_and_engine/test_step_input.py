"""Arguments of steps, which the app sends with their results: what a person sees, edits and runs again."""

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from msgspec import json

from durably import Checkpointing, Client, Context, ContextSync, Middleware
from durably.execution.step import sendable_arguments
from durably.protocol.limits import MAX_STEP_INPUT_BYTES

from .conftest import App, durable


async def inputs_of(app: App, run_id: str) -> dict[str, Any]:
    report = await app.engine.engine.inspect_run(run_id)
    assert report is not None
    return {step.id: None if step.input is None else json.decode(step.input) for step in report.steps}


@pytest.mark.parametrize("checkpointing", [None, Checkpointing()])
async def test_the_arguments_of_steps_are_kept_as_they_were_given(
    app: App, checkpointing: Checkpointing | None
) -> None:
    def charge(order: dict[str, Any], amount: float, *, currency: str = "EUR") -> str:
        order["is_charged"] = True
        return f"{order['id']} {amount} {currency}"

    async def function(ctx: Context) -> Any:
        first = await ctx.step.run("charge", charge, {"id": 7}, 4.5, currency="CHF")
        await ctx.step.run("without", lambda: None)
        await ctx.step.run("date", str, dt.date(2026, 1, 2))
        await ctx.step.run("large", len, "x" * MAX_STEP_INPUT_BYTES)
        return first

    run_id = await app.start(durable(app, function, checkpointing=checkpointing))
    output = (await app.engine.engine.wait_for_run(run_id)).output
    assert output is not None
    assert json.decode(output) == "7 4.5 CHF"
    assert await inputs_of(app, run_id) == {"charge": [{"id": 7}, 4.5], "without": None, "date": None, "large": None}


async def test_a_sync_functions_failed_step_shows_its_arguments(app: App) -> None:
    def function(ctx: ContextSync) -> None:
        ctx.step.run("parse", int, "seven")

    run_id = await app.start(durable(app, function, retries=0))
    await app.engine.engine.wait_for_run(run_id)
    assert await inputs_of(app, run_id) == {"parse": ["seven"]}


async def test_arguments_stay_in_the_app_on_request(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async def function(ctx: Context) -> None:
        await ctx.step.run("login", len, "secret")

    app.client.send_step_input = False
    run_id = await app.start(durable(app, function))
    await app.engine.engine.wait_for_run(run_id)
    assert await inputs_of(app, run_id) == {"login": None}
    assert Client(app_id="a", is_production=False).send_step_input
    assert not Client(app_id="a", is_production=False, send_step_input=False).send_step_input
    monkeypatch.setenv("DURABLY_SEND_STEP_INPUT", "0")
    assert not Client(app_id="a", is_production=False).send_step_input


async def test_arguments_stay_in_the_app_if_middleware_changes_values(app: App) -> None:
    class Hide(Middleware):
        async def transform_output(self, result: Any) -> None:
            result.output = "hidden"

    class Count(Middleware):
        async def before_step(self, step: Any) -> None: ...

    async def function(ctx: Context) -> None:
        await ctx.step.run("login", len, "secret")

    for middleware, sent in ((Hide, None), (Count, ["secret"])):
        run_id = await app.start(durable(app, function, middleware=[middleware]))
        await app.engine.engine.wait_for_run(run_id)
        assert await inputs_of(app, run_id) == {"login": sent}


def test_only_arguments_that_survive_json_are_sent() -> None:
    class Text(str): ...

    @dataclass
    class Order:
        id: int

    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    for value in (1, "é", None, True, 1.5, [], {"a": [{"b": None}]}):
        assert sendable_arguments((value,), 1000) == [value]
    for value in (
        *((1,), {1: 2}, {1}, b"x", Text("x"), float("nan"), float("inf"), "\ud800", object(), loop, deep),
        *(dt.date(2026, 1, 2), Decimal("1.5"), Order(7)),
    ):
        assert sendable_arguments((1, value), 1000) is None
        assert sendable_arguments(([value],), 1000) is None


def test_a_copy_is_sent_and_its_size_is_bounded() -> None:
    given = {"a": [1]}
    copied = sendable_arguments((given,), 1000)
    given["a"].append(2)
    assert copied == [{"a": [1]}]
    assert sendable_arguments(("x" * 996,), 1000) is not None
    for value in ("x" * 997, ["x" * 500] * 2, [0] * 1000):
        assert sendable_arguments((value,), 1000) is None
