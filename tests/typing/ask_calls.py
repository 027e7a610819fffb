"""Right and wrong uses of questions. `make lint` checks the file with mypy and pyright; nothing runs it.

Each wrong use carries an ignore comment, as in ``step_calls.py``.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

import dataclasses
from typing import Any, assert_type

import durably
from durably.testing import SyncTestEngine, SyncTestRun, TestEngine, TestRun

client = durably.Client(app_id="typing", is_production=False)


@dataclasses.dataclass
class Approval:
    approved: bool


@dataclasses.dataclass
class Receipt:
    number: int


async def async_function(ctx: durably.Context) -> None:
    receive = ctx.step.receive
    question = await receive("approval", type=Approval)
    assert_type(question, durably.Question[Approval])
    assert_type(question.data, Approval)
    assert_type(await question.reply(Receipt(1)), None)
    assert_type(
        await receive("approval", type=Approval, prompt="Yes?", timeout="3d"), durably.Question[Approval] | None
    )
    assert_type(await receive("anything"), durably.Question[Any])
    assert_type(await receive("anything", timeout=1000), durably.Question[Any] | None)

    await receive("approval", Approval)  # type: ignore[call-overload]
    await receive(1, type=Approval)  # type: ignore[call-overload]
    await receive("approval", type=Approval, prompt=1)  # type: ignore[call-overload]
    print(question.data.aproved)  # type: ignore[attr-defined]
    may_be_none = await receive("approval", type=Approval, timeout="3d")
    print(may_be_none.data)  # type: ignore[union-attr]


def sync_function(ctx: durably.ContextSync) -> None:
    question = ctx.step.receive("approval", type=Approval)
    assert_type(question, durably.QuestionSync[Approval])
    assert_type(question.data, Approval)
    assert_type(question.reply(), None)
    assert_type(ctx.step.receive("approval", type=Approval, timeout="3d"), durably.QuestionSync[Approval] | None)


async def senders(handle: durably.RunHandle[str]) -> None:
    assert_type(await handle.ask("approval", Approval(True), reply_type=Receipt), Receipt)
    assert_type(handle.ask_sync("approval", Approval(True), reply_type=Receipt, timeout="5s", id="a"), Receipt)
    assert_type(await handle.ask("approval"), Any)
    assert_type(await handle.answer("approval", Approval(True), step_id="a"), None)
    assert_type(await client.questions(function_id="shop-refund"), list[durably.OpenQuestion])
    assert_type(client.questions_sync(limit=3), list[durably.OpenQuestion])
    token = client.answer_token(handle.id, "approval", expires="3d")
    assert_type(token, str)
    assert_type(await client.question(token), durably.OpenQuestion | None)
    assert_type(await client.answer(token, Approval(True)), None)

    await handle.ask("approval", Approval(True), reply_type=1)  # type: ignore[call-overload]
    await handle.ask("approval", Approval(True), id=1)  # type: ignore[call-overload]
    await handle.ask("approval", Approval(True), timeout=10)  # type: ignore[call-overload]
    await handle.answer("approval", Approval(True), timeout=10)  # type: ignore[arg-type]
    await client.answer(token, Approval(True), timeout=10)  # type: ignore[arg-type]
    client.answer_token(handle.id)  # type: ignore[call-arg]
    client.answer_token(handle.id, "approval", expires=3600)  # type: ignore[arg-type]


async def tests(engine: TestEngine, run: TestRun, sync_engine: SyncTestEngine, sync_run: SyncTestRun) -> None:
    assert_type(await engine.ask(run, "approval", Approval(True), reply_type=Receipt), Receipt)
    assert_type(sync_engine.ask(sync_run, "approval", Approval(True), reply_type=Receipt), Receipt)
    assert_type(await engine.answer(run, "approval", Approval(True)), None)
