"""Every step type in both kinds of functions under both kinds of servers: the op it makes, and what its memo means."""

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

import durably
from durably import Context, ContextSync
from durably.errors import DurationInvalidError, FunctionConfigInvalidError
from durably.execution.step import Durations, Step, StepReport, StepRequest
from durably.protocol.opcodes import Opcode
from durably.testing import TestEngine

from .engine import NULL, Run, engine_for

TIMESTAMP = dt.datetime(2030, 1, 2, 3, 4, 5, 678_000, tzinfo=dt.UTC)
EVENT = {"name": "shop/paid", "data": {"n": 1}, "id": "01PAID", "ts": 1_700_000_000_001}


class Model:
    """An AI adapter, as users and ``inngest.experimental.ai`` write them."""

    def auth_key(self) -> str:
        return "secret"

    def format(self) -> str:
        return "openai-chat"

    def headers(self) -> dict[str, str]:
        return {"x-model": "1"}

    def on_call(self, body: dict[str, Any]) -> None:
        body["model"] = "small"

    def url_infer(self) -> str:
        return "https://model.example/chat"


@dataclass(frozen=True)
class Case:
    """``call`` makes the step, ``reply`` is the engine's memo, ``result`` what the step must then return."""

    name: str
    call: Callable[[Any], Any]
    op: str
    opts: Mapping[str, Any]
    reply: Any = NULL
    result: Any = None
    op_name: str = field(default="it")


CASES = [
    Case("sleep in ms", lambda step: step.sleep("it", 90_000), "Sleep", {"duration": "90s"}, op_name="90s"),
    Case(
        "sleep in a timedelta",
        lambda step: step.sleep("it", dt.timedelta(days=14)),
        "Sleep",
        {"duration": "2w"},
        op_name="2w",
    ),
    Case(
        "sleep until",
        lambda step: step.sleep_until("it", TIMESTAMP),
        "Sleep",
        {"duration": "2030-01-02T03:04:05.678Z"},
        op_name="2030-01-02T03:04:05.678Z",
    ),
    Case(
        "an event that comes",
        lambda step: step.wait_for_event("it", event="shop/paid", if_exp="async.data.n == 1", timeout=60_000),
        "WaitForEvent",
        {"event": "shop/paid", "if": "async.data.n == 1", "timeout": "1m"},
        EVENT,
        durably.Event(name="shop/paid", data={"n": 1}, id="01PAID", ts=1_700_000_000_001),
        "shop/paid",
    ),
    Case(
        "an event that does not come",
        lambda step: step.wait_for_event("it", event="shop/paid", timeout=dt.timedelta(hours=2)),
        "WaitForEvent",
        {"event": "shop/paid", "timeout": "2h"},
        NULL,
        None,
        "shop/paid",
    ),
    Case(
        "a signal that comes",
        lambda step: step.wait_for_signal("it", signal="ready", timeout=1500, on_conflict="replace"),
        "WaitForSignal",
        {"signal": "ready", "conflict": "replace", "timeout": "1500ms"},
        {"data": {"signal": "ready", "data": [1]}},
        durably.Signal(signal="ready", data=[1]),
        "ready",
    ),
    Case(
        "a signal that does not come",
        lambda step: step.wait_for_signal("it", signal="ready"),
        "WaitForSignal",
        {"signal": "ready", "conflict": "fail"},
        NULL,
        None,
        "ready",
    ),
    Case(
        "invoke by id",
        lambda step: step.invoke_by_id("it", app_id="other", function_id="fn", data={"a": 1}, timeout=1000, v="2"),
        "InvokeFunction",
        {"function_id": "other-fn", "payload": {"data": {"a": 1}, "v": "2"}, "timeout": "1s"},
        {"data": {"b": 2}},
        {"b": 2},
    ),
    Case(
        "invoke by id in this app",
        lambda step: step.invoke_by_id("it", function_id="fn", user={"id": 7}),
        "InvokeFunction",
        {"function_id": "app-fn", "payload": {"data": None, "user": {"id": 7}}},
        {"data": None},
    ),
    Case(
        "fetch",
        lambda step: step.fetch("it", "https://x.example/a", method="post", headers={"x-a": "1"}, body={"a": [1]}),
        "Gateway",
        {"url": "https://x.example/a", "method": "POST", "headers": {"x-a": "1"}, "body": '{"a":[1]}'},
        {"data": {"status_code": 201, "headers": {"y": "2"}, "body": '{"ok":true}'}},
        durably.FetchResponse(status_code=201, headers={"y": "2"}, body='{"ok":true}'),
    ),
    Case(
        "infer",
        lambda step: step.ai.infer("it", adapter=Model(), body={"messages": []}),
        "AIGateway",
        {
            "type": "step.ai.infer",
            "url": "https://model.example/chat",
            "headers": {"x-model": "1"},
            "auth_key": "secret",
            "format": "openai-chat",
            "body": {"messages": [], "model": "small"},
        },
        {"data": {"choices": [1]}},
        {"choices": [1]},
    ),
]
SERVERS = [("async", False), ("async", True), ("sync", False), ("sync", True)]


@pytest.fixture(params=SERVERS, ids=lambda param: f"{param[0]} function, {'sync' if param[1] else 'async'} server")
def place(request: pytest.FixtureRequest) -> tuple[bool, bool]:
    kind, blocking = request.param
    return kind == "async", blocking


async def drive(call: Callable[[Any], Any], place: tuple[bool, bool], **options: Any) -> tuple[Run, list[Any]]:
    """A run of a function that takes one step, and what that step returned at each call in which it did."""
    is_async, blocking = place
    results = []

    async def function(ctx: Context) -> str:
        results.append(await call(ctx.step))
        return "end"

    def function_sync(ctx: ContextSync) -> str:
        results.append(call(ctx.step))
        return "end"

    engine = engine_for(function if is_async else function_sync, blocking=blocking, **options)
    return await engine.run(), results


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_steps_of_the_engine(case: Case, place: tuple[bool, bool]) -> None:
    run, results = await drive(case.call, place, replies={"it": case.reply})
    [op] = run.answers[0].ops
    assert op["op"] == case.op
    assert op["opts"] == case.opts
    assert (op["displayName"], op["userland"], op["name"]) == ("it", {"id": "it"}, case.op_name)
    assert (run.output, results) == ("end", [case.result])


async def test_run_hands_arguments_over_and_its_output_back(place: tuple[bool, bool]) -> None:
    is_async, _ = place
    ran = []

    def handler(*args: Any, **kwargs: Any) -> Any:
        ran.append((args, kwargs))
        return {"args": args, "kwargs": kwargs, "none": None}

    async def async_handler(*args: Any, **kwargs: Any) -> Any:
        return handler(*args, **kwargs)

    for chosen in [handler, async_handler] if is_async else [handler]:
        ran.clear()
        run, results = await drive(lambda step, chosen=chosen: step.run("it", chosen, 1, "b", c=[2]), place)
        [op] = run.answers[0].ops
        assert (op["op"], op["displayName"], op["userland"]) == ("StepRun", "it", {"id": "it"})
        assert results == [{"args": [1, "b"], "kwargs": {"c": [2]}, "none": None}]
        assert ran == [((1, "b"), {"c": [2]})]


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("ids", [["a", "a", "a:1"], ["a:1", "a", "a"], ["a", "a:1", "a", "a:1"]])
async def test_id_that_looks_like_a_repetition_is_a_step_of_its_own(ids: list[str], checkpointing: bool) -> None:
    ran: list[int] = []

    async def function(ctx: Context) -> list[int]:
        def note(number: int) -> int:
            ran.append(number)
            return number

        found = [await ctx.step.run(step_id, note, number) for number, step_id in enumerate(ids)]
        await ctx.step.sleep("later", 1000)
        return found

    client = durably.Client(app_id="shop", is_production=False)
    served = client.create_function(fn_id="f", trigger=durably.TriggerEvent(event="go"), retries=0)(function)
    async with TestEngine(client, [served], checkpointing=checkpointing) as engine:
        run = await (await engine.send(durably.Event(name="go"))).wait()
        run.assert_completed()
        assert run.output == ran == list(range(len(ids)))


async def test_the_input_of_a_step_can_be_replaced() -> None:
    """A rerun from a step with another input: the memo says which, and the step is run with it."""

    async def function(ctx: Context) -> Any:
        return await ctx.step.run("it", lambda *args, **kwargs: [args, kwargs], "own", key="word")

    engine = engine_for(function)
    run = await engine.run()
    step_id = run.stack[0]
    for replaced, args in (([1, 2], [1, 2]), ("one", ["one"]), ([], [])):
        again = Run(run.event, memos={step_id: {"type": "input", "input": replaced}})
        [op] = (await engine.call(again)).ops
        assert op["data"] == [args, {"key": "word"}]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda step: step.sleep("nap", -1), DurationInvalidError, 'step "nap": a duration cannot be negative'),
        (
            lambda step: step.sleep("nap", 1.5),
            DurationInvalidError,
            'step "nap": a duration is a string like "1h30m", a d',
        ),
        (
            lambda step: step.sleep("nap", dt.timedelta(days=400)),
            DurationInvalidError,
            "400d is longer than the maximum of 366 days",
        ),
        (lambda step: step.sleep_until("nap", 5), DurationInvalidError, "sleep_until takes a datetime, not 5"),
        (
            lambda step: step.sleep_until("nap", dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=14)))),
            DurationInvalidError,
            'step "nap": 0001-01-01 00:00:00+14:00 is outside of the years',
        ),
        (lambda step: step.run("", len), FunctionConfigInvalidError, "a step's id must be a string"),
        (lambda step: step.run(7, len), FunctionConfigInvalidError, "a step's id must be a string"),
        *(
            (
                lambda step, name=name: step.wait_for_event("it", event=name, timeout="1m"),
                FunctionConfigInvalidError,
                'step "it": event must be a string that names it',
            )
            for name in ("", " ", 5)
        ),
        (
            lambda step: step.wait_for_signal("it", signal=" "),
            FunctionConfigInvalidError,
            'step "it": signal must be a string that names it',
        ),
        (lambda step: step.run("it", 5), FunctionConfigInvalidError, 'step "it": the handler must be callable'),
        (lambda step: step.invoke("it", function=len), FunctionConfigInvalidError, "use invoke_by_id"),
        (
            lambda step: step.wait_for_signal("it", signal="s", on_conflict="win"),
            FunctionConfigInvalidError,
            'step "it": on_conflict must be "fail" or "replace"',
        ),
    ],
)
async def test_wrong_arguments_name_the_step(
    call: Callable[[Any], Any], error: type[Exception], message: str, place: tuple[bool, bool]
) -> None:
    run, _ = await drive(call, place)
    assert run.status == "Failed"
    assert len(run.answers) == 1, "a mistake in the code is not tried again"
    assert run.output["name"] == error.__name__
    assert message in run.output["message"]


def test_handlers_are_quick_if_they_were_quick_when_they_ran_last() -> None:
    def handler(number: int) -> int:
        return number

    def step(code: Any, nanoseconds: int | None = None) -> Step:
        return Step(StepRequest("step", Opcode.STEP_RUN, handler=code), "", 0, 0, nanoseconds=nanoseconds)

    def note(*nanoseconds: int) -> None:
        steps = [step(handler, each) for each in nanoseconds]
        durations.note([StepReport(each.to_op(), each) for each in steps])

    durations = Durations()
    assert not durations.are_quick([step(handler)])
    note(1_000_000, 3_000_000)
    assert durations.are_quick([step(handler), step(partial(handler, 1))])
    assert durations.are_quick([step(handler)] * 500)
    assert not durations.are_quick([step(handler)] * 501), "more than a second"
    assert not durations.are_quick([step(handler), step(abs)])
    note(1_000_000, 1_000_000_000)
    assert not durations.are_quick([step(handler)])
    note(1_000_000)
    assert not durations.are_quick([step(handler)])
    for _ in range(20):
        note(1_000_000)
    assert durations.are_quick([step(handler)])
