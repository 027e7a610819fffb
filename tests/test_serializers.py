"""Serializers: outputs of functions and steps with an ``output_type``, as objects on this side of the wire."""

import dataclasses
import datetime as dt
import enum
from typing import Any

import pydantic
import pytest

import durably
from durably import Client, Context, ContextSync, PydanticSerializer

from .execution.engine import complete, engine_for, fail
from .ids import stable_id


class Colour(enum.Enum):
    RED = "red"


class Order(pydantic.BaseModel):
    number: int
    placed: dt.datetime
    colour: Colour = Colour.RED


@dataclasses.dataclass
class Point:
    x: int
    y: float


ORDER = Order(number=7, placed=dt.datetime(2030, 1, 2, tzinfo=dt.UTC))
VALUES: list[tuple[Any, Any]] = [
    (Order, ORDER),
    (list[Order], [ORDER, ORDER]),
    (Point, Point(1, 2.5)),
    (dict[str, Order] | None, {"a": ORDER}),
    (dict[str, Order] | None, None),
    (Colour, Colour.RED),
    (dt.timedelta, dt.timedelta(minutes=3)),
    (set[int], {1, 2}),
]


def client() -> Client:
    return Client(app_id="app", is_production=False, serializer=PydanticSerializer())


@pytest.mark.parametrize(("output_type", "value"), VALUES, ids=stable_id)
async def test_step_outputs_use_the_serializer(output_type: Any, value: Any) -> None:
    returned = []

    async def function(ctx: Context) -> None:
        returned.append(await ctx.step.run("it", lambda: value, output_type=output_type))

    def function_sync(ctx: ContextSync) -> None:
        returned.append(ctx.step.run("it", lambda: value, output_type=output_type))

    await complete(function, client=client())
    await complete(function_sync, client=client())
    assert returned == [value, value]


async def test_function_outputs_and_typed_invokes() -> None:
    app = client()

    @app.create_function(fn_id="callee", trigger=durably.TriggerEvent(event="never"), output_type=Order)
    async def callee(ctx: Context) -> Order:
        return ORDER

    async def caller(ctx: Context) -> bool:
        order = await ctx.step.invoke("it", function=callee)
        return order == ORDER

    wire = {"number": 7, "placed": "2030-01-02T00:00:00Z", "colour": "red"}
    assert await complete(caller, client=app, replies={"it": {"data": wire}}) is True
    assert await complete(_returns_order, client=client(), output_type=Order) == wire


async def _returns_order(ctx: Context) -> Order:
    return ORDER


async def test_without_an_output_type_values_pass_the_serializer_by() -> None:
    async def function(ctx: Context) -> Any:
        return await ctx.step.run("it", lambda: {"a": [1, None]})

    assert await complete(function, client=client()) == {"a": [1, None]}


async def test_a_memo_that_does_not_fit_the_type_is_an_error_where_the_step_is_awaited() -> None:
    async def function(ctx: Context) -> str:
        try:
            await ctx.step.run("it", lambda: ORDER, output_type=Order)
        except durably.errors.MemoInvalidError as error:
            return str(error)
        return "no error"

    engine = engine_for(function, client=client())
    run = await engine.run()
    assert run.output == "no error"
    stale = run.state_at(1)
    stale.memos[run.stack[0]] = {"data": {"number": "none"}}
    message = (await engine.call(stale)).json
    assert message.startswith('step "it": the stored result does not fit Order: Input should be a valid integer')
    assert "$.number" in message


async def test_an_output_that_does_not_fit_its_type_fails_the_step() -> None:
    async def function(ctx: Context) -> None:
        await ctx.step.run("it", object, output_type=bytes)

    error = await fail(function, client=client())
    assert error["code"] == "step_errored"


async def test_unserializable_output_fails_the_function() -> None:
    class Refuses:
        def serialize(self, obj: object, typ: Any) -> object:
            raise TypeError(f"cannot serialize {obj}")

        def deserialize(self, obj: object, typ: Any) -> object:
            return obj

    class Note(durably.MiddlewareSync):
        def transform_output(self, result: durably.TransformOutputResult) -> None:
            noted.append(str(result.error))

    async def function(ctx: Context) -> int:
        return 7

    noted: list[str] = []
    app = Client(app_id="app", is_production=False, serializer=Refuses(), middleware=[Note])
    assert (await fail(function, client=app, output_type=int, max_attempts=1))["message"] == "cannot serialize 7"
    assert noted == ["cannot serialize 7"]
