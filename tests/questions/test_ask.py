"""Runs that are asked, on each kind of engine."""

import asyncio
import datetime as dt
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from durably import Client, Context, ContextSync, Function
from durably.encryption import EncryptionMiddleware
from durably.errors import AnswerRefusedError, AnswerTokenError, AskTimeoutError, QuestionClosedError, RunNotFoundError

from ..temporal.dev_server import DevServer
from .engines import ENGINES


@pytest.fixture(scope="session")
def server() -> Any:
    with DevServer() as server:
        yield server


@dataclass
class Approval:
    approved: bool
    by: str


Connect = Callable[[Callable[[Client], Sequence[Function[Any]]]], AbstractAsyncContextManager[Client]]


@pytest.fixture(params=ENGINES)
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Connect:
    address = request.getfixturevalue("server").address if request.param == "temporal" else None
    return lambda make: ENGINES[request.param](tmp_path, make, address)


def desk(client: Client) -> list[Function[Any]]:
    @client.create_function(fn_id="refund", trigger=[])
    async def refund(ctx: Context) -> str:
        await ctx.step.sleep("think", dt.timedelta(milliseconds=50))
        question = await ctx.step.receive("approval", type=Approval, prompt="Refund?")
        await question.reply({"thanks": question.data.by})
        return question.data.by

    @client.create_function(fn_id="commands", trigger=[])
    def commands(ctx: ContextSync) -> list[str]:
        done: list[str] = []
        while "stop" not in done:
            question = ctx.step.receive("command", type=str)
            done.append(question.data)
            question.reply(len(done))
        return done

    @client.create_function(fn_id="silent", trigger=[])
    async def silent(ctx: Context) -> bool:
        return (await ctx.step.receive("approval", type=Approval)).data.approved

    return [refund, commands, silent]


async def test_runs_are_asked(connect: Connect) -> None:
    functions: list[Function[Any]] = []

    def make(client: Client) -> list[Function[Any]]:
        functions.extend(desk(client))
        return functions

    async with connect(make) as client:
        refund, commands, silent = functions
        handle = await refund.start()
        with pytest.raises(AnswerRefusedError, match="approved"):
            await handle.ask("approval", {"approved": "maybe", "by": "bob"})
        # It comes before the function waits, and waits for it.
        assert await handle.ask("approval", Approval(True, "ann"), reply_type=dict, id="first") == {"thanks": "ann"}
        assert await handle.result() == "ann"
        assert await handle.ask("approval", Approval(False, "bob"), id="first") == {"thanks": "ann"}
        with pytest.raises(QuestionClosedError, match="Completed"):
            await handle.ask("approval", Approval(False, "bob"))

        looping = await commands.start()
        with pytest.raises(AskTimeoutError, match="has not received a message 'comand'"):
            await looping.ask("comand", "a", timeout="100ms")
        counted = await asyncio.gather(*(looping.ask("command", text) for text in "abcde"))
        assert sorted(counted) == [1, 2, 3, 4, 5]
        assert await asyncio.to_thread(looping.ask_sync, "command", "stop") == 6
        assert sorted(await looping.result()) == ["a", "b", "c", "d", "e", "stop"]

        unheard = await silent.start()
        await unheard.answer("approval", Approval(True, "ann"))
        assert await unheard.result() is True
        with pytest.raises(RunNotFoundError):
            await client.run("01JZZZZZZZZZZZZZZZZZZZZZZZ").ask("approval", True)


async def test_a_link_answers_its_question_once(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURABLY_SIGNING_KEY", "signkey-test-" + "ab" * 32)
    functions: list[Function[Any]] = []

    def make(client: Client) -> list[Function[Any]]:
        functions.extend(desk(client))
        return functions

    async with connect(make) as client:
        refund, commands, _ = functions
        handle = await refund.start()
        token, other = (
            client.answer_token(handle.id, "approval"),
            client.answer_token(handle.id, "approval", expires="30d"),
        )
        with pytest.raises(AnswerRefusedError):
            await client.answer(token, {"approved": 1})
        question = await asyncio.to_thread(client.question_sync, token)
        assert question is not None
        assert (question.prompt, question.run_id) == ("Refund?", handle.id)
        await client.answer(token, Approval(True, "ann"))
        await asyncio.to_thread(client.answer_sync, token, Approval(True, "ann"))  # A double click.
        for late in (token, other):
            with pytest.raises(QuestionClosedError):
                await client.answer(late, Approval(False, "bob"))
        assert await handle.result() == "ann"
        assert await client.question(token) is None

        looping = await commands.start()
        token = client.answer_token(looping.id, "command")
        await client.answer(token, "a")
        with pytest.raises(QuestionClosedError, match="already"):
            await client.answer(token, "b")
        expired = client.answer_token(looping.id, "command", expires="0s")
        damaged = [
            token[:-3],
            token.replace(".", ""),
            "",
            "é.é",
            "a" * 9000,
            token[:30] + ("B" if token[30] == "A" else "A") + token[31:],
            None,
        ]
        for wrong in (expired, *damaged):
            with pytest.raises(AnswerTokenError):
                await client.answer(wrong, "c")  # type: ignore[arg-type]


def read_files(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.glob("engine.db*") if path.is_file())


async def test_messages_and_replies_are_encrypted(tmp_path: Path) -> None:
    def make(client: Client) -> list[Function[Any]]:
        client.add_middleware(EncryptionMiddleware.factory("a secret of this test"))
        functions.extend(desk(client))
        return functions

    functions: list[Function[Any]] = []
    async with ENGINES["embedded"](tmp_path, make, None):
        handle = await functions[0].start()
        assert await handle.ask("approval", Approval(True, "ann-of-the-desk"), reply_type=dict) == {
            "thanks": "ann-of-the-desk"
        }
        with pytest.raises(QuestionClosedError):
            await handle.ask("approval", {"approved": 1})
        refused = await functions[0].start()
        with pytest.raises(AnswerRefusedError, match="approved"):
            await refused.ask("approval", {"approved": 1})
        assert await handle.result() == "ann-of-the-desk"
        stored = await asyncio.to_thread(read_files, tmp_path)
    assert b"__ENCRYPTED__" in stored
    assert b"ann-of-the-desk" not in stored
