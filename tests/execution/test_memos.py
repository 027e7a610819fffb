"""The shapes that memos have on the wire, and what a call makes of them."""

import asyncio
from typing import Any

import msgspec
import pytest

from durably import Context
from durably.execution import StepMemos
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import hash_step_id

from .engine import engine_for

EVENT = {"name": "paid", "data": {"input": 1}, "id": "1", "ts": 2}


def memos_of(**values: Any) -> StepMemos:
    return StepMemos({name: msgspec.Raw(msgspec.json.encode(value)) for name, value in values.items()})


def take(memos: StepMemos, name: str) -> tuple[Any, ErrorData | None] | None:
    memo = memos.pop(name)
    return memo and (memo.data, memo.error)


@pytest.mark.parametrize(
    ("wire", "data", "error"),
    [
        ({"data": {"a": [1, None]}}, {"a": [1, None]}, None),
        ({"type": "data", "data": "text"}, "text", None),
        ({"data": None}, None, None),
        ({"data": {"input": [1]}}, {"input": [1]}, None),
        ({"error": {"name": "E", "message": "m"}}, None, ErrorData(name="E", message="m")),
        (
            {"error": {"name": "E", "message": "m", "more": 1}, "type": "error"},
            None,
            ErrorData(name="E", message="m"),
        ),
        ({"error": "only text"}, None, ErrorData(name="Error", message="only text")),
        ({"data": 1, "error": None}, 1, None),
        (None, None, None),
        (EVENT, EVENT, None),
        ([1, 2], [1, 2], None),
        ({"other": 1}, {"other": 1}, None),
    ],
)
def test_memos_of_each_shape_are_read(wire: Any, data: Any, error: ErrorData | None) -> None:
    assert take(memos_of(a=wire, b=wire), "a") == (data, error)


@pytest.mark.parametrize(
    ("wire", "data"), [(b'{"data":"\\ud83d"}', "\ud83d"), (b'["\\ude00", "\xc3\xa9"]', ["\ude00", "é"])]
)
def test_half_of_a_surrogate_pair(wire: bytes, data: Any) -> None:
    """Not text that can be encoded, but SDKs send it."""
    assert take(StepMemos({"a": msgspec.Raw(wire)}), "a") == (data, None)


def test_step_gets_the_memo_that_middleware_replaced() -> None:
    memos = memos_of(a={"data": "secret"}, b={"error": {"name": "E", "message": "secret"}}, c={"data": 1})
    for memo in memos.values():
        if memo.data == "secret":
            memo.data = "plain"
        if memo.error is not None:
            memo.error = ErrorData(name="E", message="plain")
    assert dict(memos.items())["c"].data == 1
    assert take(memos, "a") == ("plain", None)
    assert take(memos, "b") == (None, ErrorData(name="E", message="plain"))


async def test_memos_that_the_stack_does_not_name_are_returned_last() -> None:
    """The body of a large call is fetched, and may then have memos that are newer than the call."""
    order: list[str] = []

    async def function(ctx: Context) -> None:
        async def branch(name: str) -> None:
            await ctx.step.run(name, str, name)
            order.append(name)

        await asyncio.gather(*(branch(name) for name in "abc"))

    engine = engine_for(function)
    run = await engine.run()
    run.memos = {hash_step_id(name): {"data": name} for name in "abc"}
    run.stack = [hash_step_id(name) for name in "cb"]
    order.clear()
    assert (await engine.call(run)).status == 200
    assert order == ["c", "b", "a"]
