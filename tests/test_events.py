"""Events, and event types bound to pydantic models."""

from typing import Any

import pydantic
import pytest

from durably import Client, Context, Event, EventType

from .execution.engine import complete, engine_for


class Order(pydantic.BaseModel):
    number: int
    paid: bool = False


PLACED = EventType("shop/order.placed", Order)


def test_an_event_type_makes_events_with_checked_data() -> None:
    event = PLACED(Order(number=7), id="once", ts=5, user={"id": 1}, v="2")
    assert event == Event(
        name="shop/order.placed", data={"number": 7, "paid": False}, id="once", ts=5, user={"id": 1}, v="2"
    )


def test_an_event_type_is_a_trigger() -> None:
    assert PLACED.trigger().to_wire() == {"event": "shop/order.placed"}
    assert PLACED.trigger("event.data.paid").to_wire() == {
        "event": "shop/order.placed",
        "expression": "event.data.paid",
    }


async def test_a_function_reads_its_event_as_the_model() -> None:
    async def function(ctx: Context) -> Any:
        order = PLACED.data(ctx.event)
        assert isinstance(order, Order)
        return order.number

    assert await complete(function, data={"number": 7}) == 7
    with pytest.raises(pydantic.ValidationError):
        PLACED.data(Event(name="shop/order.placed", data={"number": "none"}))


async def test_models_are_data_wherever_data_goes() -> None:
    async def function(ctx: Context) -> Any:
        await ctx.step.invoke_by_id("it", function_id="fn", data=Order(number=1))  # type: ignore[arg-type]

    run = await engine_for(function, client=Client(app_id="app", is_production=False)).run()
    assert run.answers[0].ops[0]["opts"]["payload"] == {"data": {"number": 1, "paid": False}}


def test_absent_data_is_an_empty_object() -> None:
    assert Event(name="e").data == {}
    assert Event(name="e", data=None).data == {}
