"""Messages, questions and schemas that nobody should send."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pydantic
import pytest

from durably import Client, Context
from durably.engine.model.questions import find_mismatch
from durably.engine.sqlite.server import serve_database
from durably.protocol.questions import signal_of
from durably.questions import RunQuestions
from durably.testing import TestEngine
from durably.values.codecs import json_schema

from .engines import SETTINGS, serving


@pytest.fixture
async def waiting(tmp_path: Path) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """A session with an engine, and the URL at which a waiting run is asked."""
    async with await serve_database(tmp_path / "engine.db", SETTINGS, port=0) as server:
        client = Client(
            app_id="desk", is_production=False, api_base_url=server.origin, event_api_base_url=server.origin
        )

        @client.create_function(fn_id="wait", trigger=[])
        async def wait(ctx: Context) -> Any:
            return (await ctx.step.receive("name", type=int)).data

        async with serving(client, [wait]) as url, aiohttp.ClientSession() as session:
            await session.put(url)
            handle = await wait.start()
            yield session, f"{server.origin}/v1/runs/{handle.id}/asks"
            async with session.post(f"{server.origin}/v1/runs/{handle.id}/asks", json=message(data=7)) as response:
                assert response.status == 200
            assert await handle.result() == 7


def message(**fields: Any) -> dict[str, Any]:
    return {"name": "name", "id": "a", "data": 1, "within": 5, "needs_reply": False} | fields


NESTED: Any = 0
for _ in range(300):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b"\xff", 400),
        (message(id=""), 400),
        (message(id=" "), 400),
        (message(id="x" * 300), 400),
        (message(id=1), 400),
        (message(name=" "), 400),
        (message(name="x" * 300), 400),
        (message(name=None), 400),
        (message(within="soon"), 400),
        (message(data=NESTED), 400),
        (message(data="x" * 4_000_000), 413),
        (message(data=True), 422),
        (message(data={"__ENCRYPTED__": 1}), 422),
        (message(step_id="abc"), 409),
        (message(name="../name", within=0), 200),
        (message(name="name:1", within=-5), 200),
        (message(name="\u0000\u202e", within=0), 200),
    ],
)
async def test_wrong_messages_are_refused_and_the_run_waits_on(
    waiting: tuple[aiohttp.ClientSession, str], body: Any, status: int
) -> None:
    session, url = waiting
    encoded = body if isinstance(body, bytes) else msgspec.json.encode(body)
    async with session.post(url, data=encoded, headers={"content-type": "application/json"}) as response:
        answer = await response.json()
        assert (response.status, "Traceback" in str(answer)) == (status, False), answer
        if status == 200:
            assert answer["data"]["state"] == "waiting"


@pytest.mark.parametrize("question", [1, {"name": 1}, {}, {"name": "a", "schema": []}, {"name": "x" * 70_000}])
async def test_a_question_that_cannot_be_read_fails_its_run(monkeypatch: pytest.MonkeyPatch, question: Any) -> None:
    client = Client(app_id="desk", is_production=False)

    @client.create_function(fn_id="ask", trigger=[])
    async def ask(ctx: Context) -> None:
        await ctx.step.receive("name")

    receive = RunQuestions.receive

    def receive_wrongly(self: RunQuestions, *arguments: Any) -> Any:
        steps = receive(self, *arguments)
        request = next(steps)
        request.opts = {**(request.opts or {}), "question": question}
        yield request

    monkeypatch.setattr(RunQuestions, "receive", receive_wrongly)
    async with TestEngine(client, [ask]) as engine:
        run = await (await engine.invoke(ask)).wait()
        assert "question" in run.error.message


async def test_a_signal_of_another_program_is_no_message() -> None:
    client = Client(app_id="desk", is_production=False)

    @client.create_function(fn_id="wait", trigger=[])
    async def wait(ctx: Context) -> Any:
        return (await ctx.step.receive("name", type=int)).data

    async with TestEngine(client, [wait]) as engine:
        run = await engine.invoke(wait)
        for data in (None, 1, [], {"data": 1}, {"id": 1, "data": 1}, {"id": "a", "data": 1, "is_only": "x"}):
            assert await engine.signal(signal_of(run.id, "name"), data)
        await engine.signal(signal_of(run.id, "name"), {"id": "a", "data": "refused by the function"})
        await engine.answer(run, "name", 5)
        assert (await run.wait()).output == 5


class Node(msgspec.Struct):
    name: str
    children: list["Node"] = []
    parent: "Node | None" = None


class Aliased(pydantic.BaseModel):
    full_name: str = pydantic.Field(validation_alias=pydantic.AliasChoices("full", "full_name"))


@pytest.mark.parametrize(
    ("kind", "fits", "others"),
    [
        (Node, [{"name": "a", "children": [{"name": "b"}], "parent": None}], [{}, {"name": "a", "children": [{}]}, []]),
        (int | str, [1, "a"], [1.5, None, True]),
        (Aliased, [{"full": "a"}, {"full_name": "a"}], [{}, {"full": 1}]),
        (bool, [True], [1, "true", None]),
        (float, [1, 1.5], ["1", True]),
    ],
)
def test_schemas_are_checked(kind: Any, fits: list[Any], others: list[Any]) -> None:
    schema = json_schema(kind)
    assert schema is not None
    assert [find_mismatch(schema, each) for each in fits] == [None] * len(fits)
    assert None not in [find_mismatch(schema, each) for each in others]


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"anyOf": [{"$ref": "#"}, {"$ref": "#"}, {"$ref": "#"}]},
        {"items": {"$ref": "#/nowhere"}, "type": 3, "enum": 4, "required": 5, "properties": 6, "anyOf": 7},
        {"type": [[], {}], "properties": {"a": 1}, "required": [[]]},
    ],
)
def test_schemas_that_cannot_be_read_let_messages_through_quickly(schema: dict[str, Any]) -> None:
    began = time.monotonic()
    for value in ([[0] * 100_000], {"a": {}}, 1):
        find_mismatch(schema, value)
    assert time.monotonic() - began < 5
