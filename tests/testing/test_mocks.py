"""Steps that a test makes up: each kind of step."""

import datetime as dt
from typing import Any

import pydantic
import pytest

import durably
from durably.testing import TestEngine

from .shop import DAY, CardError, client

EVENT = durably.TriggerEvent(event="go")
GO = durably.Event(name="go")


async def must_not_run(*args: Any) -> str:
    raise AssertionError("a mocked step's handler ran")


class Adapter:
    def auth_key(self) -> str:
        return "secret"

    def format(self) -> str:
        return "openai-chat"

    def headers(self) -> dict[str, str]:
        return {}

    def on_call(self, body: dict[str, Any]) -> None: ...

    def url_infer(self) -> str:
        return "https://model.invalid"


@client.create_function(fn_id="all-kinds", trigger=EVENT, retries=0)
async def all_kinds(ctx: durably.Context) -> list[Any]:
    event = await ctx.step.wait_for_event("event", event="never", timeout=DAY)
    nothing = await ctx.step.wait_for_event("no-event", event="never", timeout=DAY)
    signal = await ctx.step.wait_for_signal("signal", signal="never")
    response = await ctx.step.fetch("fetch", "https://nowhere.invalid", method="POST", body={"a": 1})
    assert event is not None
    assert signal is not None
    await ctx.step.sleep("sleep", DAY)
    return [
        await ctx.step.run("run", must_not_run, 1),
        event.data["n"],
        nothing,
        signal.data,
        response.json(),
        await ctx.step.invoke_by_id("invoke", function_id="nothing"),
        await ctx.step.ai.infer("infer", adapter=Adapter(), body={}),
        await ctx.step.ai.wrap("wrap", must_not_run),
    ]


@pytest.mark.parametrize("checkpointing", [False, True])
async def test_each_kind_of_step_is_mocked(checkpointing: bool) -> None:
    async with TestEngine(client, [all_kinds], checkpointing=checkpointing) as engine:
        start = engine.now
        engine.mock_step("event", returns=durably.Event(name="never", data={"n": 1}))
        engine.mock_step("no-event")
        engine.mock_step("signal", returns=durably.Signal("never", {"n": 2}))
        engine.mock_step("fetch", returns=durably.FetchResponse(200, {}, '{"n": 3}'))
        engine.mock_step("sleep")
        engine.mock_step("run", returns={"n": 4})
        engine.mock_step("invoke", returns={"n": 5})
        engine.mock_step("infer", returns={"n": 6})
        engine.mock_step("wrap", returns={"n": 7})
        run = await engine.send(GO)
        run.assert_completed(output=[{"n": 4}, 1, None, {"n": 2}, {"n": 3}, {"n": 5}, {"n": 6}, {"n": 7}])
        assert engine.now == start


async def test_mock_gets_the_arguments_of_the_step() -> None:
    seen: list[Any] = []

    @client.create_function(fn_id="given", trigger=EVENT)
    async def given(ctx: durably.Context) -> None:
        await ctx.step.run("run", must_not_run, 1, key="value")
        await ctx.step.invoke_by_id("invoke", function_id="other", data={"n": 1}, timeout=DAY)

    def note(*args: Any, **kwargs: Any) -> None:
        seen.append((args, kwargs))

    async with TestEngine(client, [given]) as engine:
        engine.mock_step("run", calls=note)
        engine.mock_step("invoke", calls=note)
        (await engine.send(GO)).assert_completed()
    options = {"function_id": "shop-other", "payload": {"data": {"n": 1}}, "timeout": "1d"}
    assert seen == [((1,), {"key": "value"}), ((options,), {})]


@client.create_function(fn_id="single", trigger=EVENT, retries=2)
async def single(ctx: durably.Context) -> str:
    return await ctx.step.run("step", lambda: "real")


async def test_a_mock_that_raises_is_tried_again_unless_it_says_not_to() -> None:
    async with TestEngine(client, [single]) as engine:
        start = engine.now
        engine.mock_step("step", raises=CardError("declined"))
        run = await (await engine.send(GO)).wait()
        run.assert_failed(error="CardError", message="declined")
        run.assert_step("step", error="CardError", attempts=3)
        assert engine.now - start == dt.timedelta(seconds=45)
        engine.mock_step("step", raises=durably.NonRetriableError("never"))
        final = await engine.send(GO)
        final.assert_step("step", error="NonRetriableError", attempts=1)


@pytest.mark.parametrize("checkpointing", [False, True])
async def test_a_step_fails_on_chosen_attempts(checkpointing: bool) -> None:
    async with TestEngine(client, [single], checkpointing=checkpointing) as engine:
        start = engine.now
        engine.fail_step("step", attempts=[0, 1], error=CardError)
        run = await (await engine.send(GO)).wait()
        run.assert_step("step", output="real", attempts=3)
        assert engine.now - start == dt.timedelta(seconds=45)
        engine.mock_step("step", returns="mocked")
        run = await (await engine.send(GO)).wait()
        run.assert_step("step", output="mocked", attempts=3)


async def test_a_step_without_a_handler_fails_on_chosen_attempts() -> None:
    @client.create_function(fn_id="waits", trigger=EVENT)
    async def waits(ctx: durably.Context) -> str:
        event = await ctx.step.wait_for_event("wait", event="come", timeout=DAY)
        return "came" if event else "timed out"

    async with TestEngine(client, [waits]) as engine:
        engine.fail_step("wait", attempts=[0])
        run = await engine.send(GO)
        await engine.advance(seconds=15)
        await engine.send(durably.Event(name="come"))
        run.assert_completed(output="came")


async def test_mocks_of_one_function_leave_others_alone_and_the_latest_wins() -> None:
    @client.create_function(fn_id="twin", trigger=EVENT)
    async def twin(ctx: durably.Context) -> str:
        return await ctx.step.run("step", lambda: "real")

    async with TestEngine(client, [single, twin]) as engine:
        engine.mock_step("step", returns="first", function=single)
        engine.mock_step("step", returns="second", function=single)
        runs = await engine.send([GO])
        assert {run.function_id: run.output for run in runs} == {"shop-single": "second", "shop-twin": "real"}


async def test_parallel_steps_are_mocked_one_by_one() -> None:
    @client.create_function(fn_id="parallel", trigger=EVENT)
    async def parallel(ctx: durably.Context) -> list[int]:
        async def double(number: int) -> int:
            return await ctx.step.run("double", lambda: 2 * number)

        return list(await ctx.group.parallel([lambda number=number: double(number) for number in range(3)]))

    async with TestEngine(client, [parallel]) as engine:
        answers = iter([7, 8, 9])
        engine.mock_step("double", calls=lambda: next(answers))
        run = await engine.send(GO)
        run.assert_completed(output=[7, 8, 9])
        assert [(step.id, step.output) for step in run.steps.values()] == [
            ("double", 7),
            ("double:1", 8),
            ("double:2", 9),
        ]


class Receipt(pydantic.BaseModel):
    number: int


async def test_models_pass_through_a_clients_serializer() -> None:
    shop = durably.Client(app_id="models", serializer=durably.PydanticSerializer())

    @shop.create_function(fn_id="other", trigger=durably.TriggerEvent(event="other"), output_type=Receipt)
    async def other(ctx: durably.Context) -> Receipt:
        return Receipt(number=0)

    @shop.create_function(fn_id="typed", trigger=EVENT)
    async def typed(ctx: durably.Context) -> list[int]:
        ran = await ctx.step.run("run", must_not_run, output_type=Receipt)
        invoked = await ctx.step.invoke("invoke", function=other)
        assert isinstance(ran, Receipt)
        assert isinstance(invoked, Receipt)
        return [ran.number, invoked.number]

    async with TestEngine(shop, [typed, other]) as engine:
        engine.mock_step("run", returns=Receipt(number=1))
        engine.mock_step("invoke", returns=Receipt(number=2))
        (await engine.send(GO)).assert_completed(output=[1, 2])


async def test_mock_has_one_outcome() -> None:
    engine = TestEngine(client, [single])
    with pytest.raises(TypeError, match="one of returns, raises and calls"):
        engine.mock_step("step", raises=ValueError, calls=print)
    with pytest.raises(TypeError, match="one of returns, raises and calls"):
        engine.mock_step("step", returns=1, calls=print)
