"""Functions that receive messages, in the test engine."""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import pydantic
import pytest

from durably import Client, Context, ContextSync
from durably.engine.model.runs import FromStep
from durably.errors import AnswerRefusedError, FunctionConfigInvalidError, QuestionClosedError
from durably.testing import RunStuckError, TestEngine

client = Client(app_id="desk")


@dataclass
class Approval:
    approved: bool
    by: str


class Receipt(msgspec.Struct):
    number: int


class Positive(pydantic.BaseModel):
    amount: Annotated[int, pydantic.AfterValidator(lambda amount: amount if amount > 0 else _refuse())]


def _refuse() -> int:
    raise ValueError("must be positive")


@client.create_function(fn_id="refund", trigger=[])
async def refund(ctx: Context) -> Any:
    question = await ctx.step.receive("approval", type=Approval, prompt="Refund 40 €?")
    assert isinstance(question.data, Approval)
    number = await ctx.step.run("pay", lambda: 7)
    await question.reply(Receipt(number))
    return [question.data.approved, question.data.by]


@client.create_function(fn_id="refund-sync", trigger=[])
def refund_sync(ctx: ContextSync) -> Any:
    question = ctx.step.receive("approval", type=Approval, prompt="Refund 40 €?")
    assert isinstance(question.data, Approval)
    number = ctx.step.run("pay", lambda: 7)
    question.reply(Receipt(number))
    return [question.data.approved, question.data.by]


@client.create_function(fn_id="commands", trigger=[])
async def commands(ctx: Context) -> list[str]:
    done: list[str] = []
    while True:
        question = await ctx.step.receive("command", type=str)
        done.append(question.data)
        await question.reply(len(done))
        if question.data == "stop":
            return done


@client.create_function(fn_id="pay", trigger=[])
async def pay(ctx: Context) -> int | None:
    question = await ctx.step.receive("amount", type=Positive, timeout="1h")
    return None if question is None else question.data.amount


@pytest.mark.parametrize("function", [refund, refund_sync])
@pytest.mark.parametrize("checkpointing", [False, True])
async def test_a_function_gets_typed_messages_and_replies(function: Any, checkpointing: bool) -> None:
    async with TestEngine(client, [refund, refund_sync], checkpointing=checkpointing) as engine:
        run = await engine.invoke(function)
        receipt = await engine.ask(run, "approval", Approval(True, "ann"), reply_type=Receipt)
        assert receipt == Receipt(7)
        assert (await run.wait()).output == [True, "ann"]
        await engine.check_determinism(run)


async def test_a_loop_receives_each_message_once_and_in_order() -> None:
    async with TestEngine(client, [commands]) as engine:
        run = await engine.invoke(commands)
        replies = [await engine.ask(run, "command", text, id=text) for text in ("a", "b", "a", "stop")]
        assert replies == [1, 2, 1, 3]
        assert (await run.wait()).output == ["a", "b", "stop"]
        await engine.check_determinism(run)


async def test_a_message_that_does_not_fit_is_refused_and_the_function_waits_on() -> None:
    async with TestEngine(client, [refund, pay]) as engine:
        run, paid = await engine.invoke(refund), await engine.invoke(pay)
        for wrong in ({"approved": "yes", "by": "ann"}, {"approved": True}, [1], None, "approve"):
            with pytest.raises(AnswerRefusedError, match="approval"):
                await engine.ask(run, "approval", wrong)
        assert list(run.steps) == ["approval"]  # the engine knows the type
        with pytest.raises(AnswerRefusedError, match="must be positive"):
            await engine.ask(paid, "amount", {"amount": -1})
        await engine.answer(paid, "amount", Positive.model_construct(amount=3))
        assert (await paid.wait()).output == 3


async def test_the_timeout_is_that_of_the_question_and_not_of_each_message() -> None:
    async with TestEngine(client, [pay]) as engine:
        run = await engine.invoke(pay)
        await engine.advance("50m")
        with pytest.raises(AnswerRefusedError):
            await engine.ask(run, "amount", {"amount": 0})
        await engine.advance("11m")
        assert run.has_ended
        assert run.output is None


async def test_a_message_that_nobody_takes_is_refused_with_the_reason() -> None:
    async with TestEngine(client, [refund, commands]) as engine:
        run = await engine.invoke(refund)
        with pytest.raises(RunStuckError, match="does not receive 'aproval'"):
            await engine.ask(run, "aproval", Approval(True, "ann"))
        await engine.answer(run, "approval", Approval(True, "ann"))
        await run.wait()
        with pytest.raises(QuestionClosedError, match="Completed"):
            await engine.ask(run, "approval", Approval(True, "ann"))


async def test_mocks_are_messages() -> None:
    async with TestEngine(client, [refund, pay]) as engine:
        engine.mock_step("approval", returns=Approval(False, "bob"))
        engine.mock_step("amount", returns=None)
        assert (await (await engine.invoke(refund)).wait()).output == [False, "bob"]
        assert (await (await engine.invoke(pay)).wait()).output is None


async def test_wrong_uses_are_named() -> None:
    @client.create_function(fn_id="wrong", trigger=[], retries=0)
    async def wrong(ctx: Context) -> list[str]:
        messages = []
        for name, options in (
            ("", {}),
            ("x" * 300, {}),
            ("big", {"prompt": "x" * 70_000}),
            ("t", {"type": asyncio.Task}),
        ):
            try:
                await ctx.step.receive(name, **options)  # type: ignore[call-overload]
            except FunctionConfigInvalidError as error:
                messages.append(str(error)[:60])
        question = await ctx.step.receive("twice")
        await question.reply(1)
        try:
            await question.reply(2)
        except FunctionConfigInvalidError as error:
            messages.append(str(error))
        return messages

    async with TestEngine(client, [wrong]) as engine:
        run = await engine.invoke(wrong)
        assert await engine.ask(run, "twice") == 1
        assert len((await run.wait()).output) == 5


async def test_questions_race_and_end_with_a_deadline() -> None:
    @client.create_function(fn_id="race", trigger=[])
    async def race(ctx: Context) -> list[str]:
        names = ("first", "second")
        found = [asyncio.ensure_future(ctx.step.receive(name, type=str)) for name in names]
        done, left = await asyncio.wait(found, return_when=asyncio.FIRST_COMPLETED)
        for each in left:
            each.cancel()
        messages = [each.result().data for each in done]
        try:
            async with ctx.group.timeout("deadline", "1h"):
                await ctx.step.receive("third")
        except TimeoutError:
            messages.append("too late")
        return messages

    async with TestEngine(client, [race]) as engine:
        run = await engine.invoke(race)
        await engine.answer(run, "second", "hello")
        assert (await run.wait()).output == ["hello", "too late"]
        await engine.check_determinism(run)


async def test_a_rerun_from_a_later_step_keeps_the_answer() -> None:
    async with TestEngine(client, [refund]) as engine:
        run = await engine.invoke(refund)
        await engine.ask(run, "approval", Approval(True, "ann"))
        await run.wait()
        (new_id,) = [await engine._engine.rerun(run.id, from_step=FromStep("pay"))]
        await engine.run_until_idle()
        again = next(each for each in engine.runs() if each.id == new_id)
        assert again.output == [True, "ann"]


@pytest.mark.parametrize(("mistake", "error"), [("twice", "SignalConflictError"), ("unawaited", "StepNotAwaitedError")])
async def test_mistakes_of_a_function_are_named(mistake: str, error: str) -> None:
    @client.create_function(fn_id=mistake, trigger=[], retries=0)
    async def wrong(ctx: Context) -> None:
        if mistake == "twice":
            await asyncio.gather(ctx.step.receive("name"), ctx.step.receive("name"))
        ctx.step.receive("name")  # type: ignore[unused-coroutine]

    async with TestEngine(client, [wrong]) as engine:
        run = await (await engine.invoke(wrong)).wait()
        assert run.error.name == error
        assert "name" in run.error.message


def test_a_synchronous_test_asks_with_the_engine_and_with_handles() -> None:
    with TestEngine(client, [refund_sync, commands]).sync() as engine:
        run, looping = engine.invoke(refund_sync), engine.invoke(commands)
        handle = client.run(looping.id)
        assert handle.ask_sync("command", "a") == 1
        handle.answer_sync("command", "b")
        assert engine.ask(looping, "command", "stop", reply_type=int) == 3
        assert engine.ask(run, "approval", Approval(True, "ann"), reply_type=Receipt) == Receipt(7)
        assert run.wait().output == [True, "ann"]
        assert client.questions_sync() == []
