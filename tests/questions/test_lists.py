"""Lists of open questions, and answers of people: over HTTP, on the command line, and in the dashboard."""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec
import pytest
from click.testing import CliRunner

from durably import Client, Context, Function
from durably.cli.group import durably
from durably.engine_client import execute
from durably.io.http_client import AsyncIO
from durably.runs import RunHandle

from .engines import over_http


class Decision(msgspec.Struct):
    approved: bool
    size: Literal["small", "large"] = "small"
    amount: int | None = None
    reason: str = ""


def desk(client: Client) -> list[Function[Any]]:
    @client.create_function(fn_id="refund", trigger=[])
    async def refund(ctx: Context) -> Any:
        question = await ctx.step.receive("approval", type=Decision, prompt=f"Refund {ctx.event.data['order']}?")
        again = await ctx.step.receive("again")
        return [msgspec.to_builtins(question.data), again.data]

    return [refund]


class Desk:
    """An app with its engine at ``origin``."""

    def __init__(self, client: Client, refund: Function[Any], session: aiohttp.ClientSession) -> None:
        self.client, self.refund, self.session = client, refund, session
        self.origin = client.api_origin

    async def ask(self, order: str) -> RunHandle[Any]:
        """A run that asks."""
        handle = await self.refund.start({"order": order})
        await self.open_question(handle, "approval")
        return handle

    async def open_question(self, handle: RunHandle[Any], name: str) -> Any:
        position = None
        while True:
            arguments: dict[str, Any] = {"run_id": handle.id, "after": position}
            changes = await self.execute("wait_for_changes", arguments)
            position = changes.position
            for each in await self.execute("list_questions", {"run_id": handle.id}):
                if each.name == name:
                    return each

    async def execute(self, name: str, arguments: dict[str, Any]) -> Any:
        return await execute(self.client, name, arguments, AsyncIO())

    async def command(self, *arguments: str) -> Any:
        return await asyncio.to_thread(CliRunner().invoke, durably, [*arguments, "--url", self.origin])

    async def page(self, path: str) -> str:
        async with self.session.get(self.origin + path) as response:
            return await response.text()

    async def submit(self, run_id: str, **fields: str) -> tuple[int, str]:
        """Send the answer of the form on the page of a run."""
        page = await self.page(f"/runs/{run_id}")
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))
        async with self.session.post(
            f"{self.origin}/runs/{run_id}/answer",
            data={**hidden, **{f"answer.{name}": value for name, value in fields.items()}},
        ) as response:
            return response.status, await response.text()


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Desk]:
    made: list[Function[Any]] = []

    def make(client: Client) -> list[Function[Any]]:
        made.extend(desk(client))
        return made

    jar = aiohttp.CookieJar(unsafe=True)
    async with over_http(tmp_path, make, None) as client, aiohttp.ClientSession(cookie_jar=jar) as session:
        yield Desk(client, made[0], session)


async def test_open_questions_are_listed_and_answered_on_the_command_line(shop: Desk) -> None:
    runs = [await shop.ask(f"order-{number}") for number in range(3)]
    listed = await shop.execute("list_questions", {"limit": 2})
    assert [each.run_id for each in listed] == [runs[2].id, runs[1].id]
    rest = await shop.execute("list_questions", {"cursor": f"{listed[1].run_id}.{listed[1].step_id}"})
    assert [(each.run_id, each.prompt, each.function_id) for each in rest] == [
        (runs[0].id, "Refund order-0?", "desk-refund")
    ]
    assert await shop.execute("list_questions", {"function_id": "desk-other"}) == []
    assert "Refund order-1?" in (await shop.command("questions")).output
    wrong = await shop.command("answer", runs[0].id, "approval", "--data", '{"approved": 1}')
    assert (wrong.exit_code, "approved" in wrong.output) == (1, True)
    assert (await shop.command("answer", runs[0].id, "other", "--data", "1")).exit_code == 1
    done = await shop.command("answer", runs[0].id[-8:], "approval", "--data", '{"approved": true}')
    assert (done.exit_code, done.output) == (0, f"run {runs[0].id} has received the answer\n")
    await shop.open_question(runs[0], "again")
    assert runs[0].id not in (await shop.command("questions", "--json", "--limit", "1")).output


async def test_a_question_is_answered_in_the_dashboard(shop: Desk) -> None:
    run = await shop.ask("<b>42</b>")
    assert "Refund &lt;b&gt;42&lt;/b&gt;?" in await shop.page("/questions")
    status, page = await shop.submit(run.id, reason="late", amount="4.5")
    assert (status, "Approved is missing" in page, 'value="4.5"' in page) == (422, True, True)
    status, page = await shop.submit(run.id, approved="true", amount="4.5")
    assert (status, "$.amount" in page) == (422, True)
    old_page = await shop.page(f"/runs/{run.id}")
    status, page = await shop.submit(run.id, approved="true", amount="4", size='"large"', reason="late")
    assert (status, "has received the answer" in page) == (200, True)
    await shop.open_question(run, "again")
    hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', old_page))
    fields = {**hidden, "answer.approved": "false"}
    async with shop.session.post(f"{shop.origin}/runs/{run.id}/answer", data=fields) as response:
        assert "not open any more" in await response.text()
    status, page = await shop.submit(run.id, **{"": "{"})
    assert (status, "must be JSON" in page) == (422, True)
    await shop.submit(run.id, **{"": '{"a": [1]}'})
    decision = {"approved": True, "size": "large", "amount": 4, "reason": "late"}
    assert await run.result() == [decision, {"a": [1]}]


async def test_open_questions_are_found_by_index(shop: Desk, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "engine.db")
    query = (
        "EXPLAIN QUERY PLAN SELECT runs.id FROM waits JOIN runs ON runs.key = waits.run_key "
        "WHERE waits.question IS NOT NULL AND (waits.run_key, waits.step_id) < (9, 'a') "
        "ORDER BY waits.run_key DESC, waits.step_id DESC LIMIT 10"
    )
    plan = [row[3] for row in connection.execute(query)]
    connection.close()
    assert "waits_by_question" in plan[0], plan
    assert not any("TEMP B-TREE" in each for each in plan), plan
