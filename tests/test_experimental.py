"""The names of ``inngest.experimental``, and pydantic's methods of events."""

import json

import inngest.experimental
import msgspec
import pytest

import durably
from durably import Context, ContextSync, Event, experimental
from durably.errors import StepNestedError

from .execution.engine import complete, engine_for


@experimental.step("add")
async def add(a: int, *, b: int) -> tuple[int, str]:
    """Adds."""
    return a + b, "sum"


@experimental.step("add-sync")
def add_sync(a: int, *, b: int) -> tuple[int, str]:
    return a + b, "sum"


def test_all_names_of_inngest_experimental_exist() -> None:
    assert set(inngest.experimental.__all__) <= set(experimental.__all__)
    assert durably.experimental is experimental


async def test_a_decorated_function_is_a_step_in_a_durable_function() -> None:
    async def function(ctx: Context) -> bool:
        assert experimental.get_step_context() is ctx.step
        return await add(1, b=2) == (3, "sum") and await add(3, b=4) == (7, "sum")

    def function_sync(ctx: ContextSync) -> bool:
        assert experimental.get_step_context() is ctx.step
        return add_sync(1, b=2) == (3, "sum") and add_sync(3, b=4) == (7, "sum")

    for handler, blocking in ((function, False), (function_sync, False), (function_sync, True)):
        run = await engine_for(handler, blocking=blocking).run()
        assert run.output is True
        assert len(run.stack) == 2


async def test_it_is_an_ordinary_function_elsewhere() -> None:
    assert await add(1, b=2) == (3, "sum")
    assert add_sync(1, b=2) == (3, "sum")
    assert add.__doc__ == "Adds."
    with pytest.raises(LookupError, match="outside of a durable function"):
        experimental.get_step_context()


async def test_inside_another_step_it_is_refused_like_any_nested_step() -> None:
    async def function(ctx: Context) -> str:
        try:
            await ctx.step.run("outer", add, 1, b=2)
        except durably.StepError as error:
            return error.name
        return "no error"

    assert await complete(function) == StepNestedError.__name__


async def test_the_context_may_be_set_in_tests() -> None:
    async def function(ctx: Context) -> str:
        with pytest.raises(RuntimeError, match="is already set"), experimental.set_step_context(ctx.step):
            pass
        return "ok"

    assert await complete(function) == "ok"


EVENT = Event(name="a", data={"n": 1}, id="1", ts=5)


def test_events_have_pydantics_methods() -> None:
    theirs = inngest.Event(name="a", data={"n": 1}, id="1", ts=5)
    assert EVENT.model_dump() == EVENT.model_dump(mode="json") == theirs.model_dump()
    assert json.loads(EVENT.model_dump_json()) == json.loads(theirs.model_dump_json())
    assert Event.model_validate(theirs.model_dump()) == EVENT
    assert EVENT.model_copy(update={"name": "b"}).name == "b"
    assert Event(name="a", user={"id": 1}, v="1").model_dump()["user"] == {"id": 1}
    with pytest.raises(msgspec.ValidationError):
        Event.model_validate({"data": {}})
    with pytest.raises(TypeError, match="does not take exclude"):
        EVENT.model_dump(exclude={"id"})
