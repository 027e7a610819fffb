"""Middleware of either kind around functions of either kind: each hook once per call, step or sending, in order."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import inngest
import pytest

import durably
from durably import Client, Context, ContextSync, Event, Middleware, MiddlewareSync, TransformOutputResult
from durably.execution import StepInfo, StepMemos

from ..execution.engine import Run, complete, engine_for, fail, named
from ..fake_engine import FakeEngine as HTTPEngine
from ..fake_engine import serving_fake_engine

HOOKS = (
    "transform_input",
    "after_memoization",
    "before_execution",
    "after_execution",
    "transform_output",
    "before_response",
    "before_step",
    "after_step",
    "before_send_events",
    "after_send_events",
    "transform_step_input",
)
REVERSED = {"after_execution", "transform_output", "after_step", "after_send_events"}
Log = list[str]


def recording(log: Log, name: str, *, is_async: bool, hooks: tuple[str, ...] = HOOKS) -> Any:
    """A middleware class that notes its hooks as ``name.hook``."""

    def make(hook: str) -> Callable[..., Any]:
        def record(self: Any, *args: Any) -> None:
            log.append(f"{name}.{hook}")

        async def record_later(self: Any, *args: Any) -> None:
            await asyncio.sleep(0)
            log.append(f"{name}.{hook}")

        return record_later if is_async else record

    base = Middleware if is_async else MiddlewareSync
    return type(f"Recording{name}", (base,), {hook: make(hook) for hook in hooks})


KINDS = [
    (function, middleware, server)
    for function in ("async", "sync")
    for middleware in ("async", "sync")
    for server in ("async", "sync")
]


@pytest.fixture(params=KINDS, ids=lambda kinds: "{} function, {} middleware, {} server".format(*kinds))
def kinds(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    return request.param  # type: ignore[no-any-return]


def program(log: Log, kind: str) -> Callable[..., Any]:
    """Two steps, a sleep, two steps at once; the code between them notes that it runs."""

    async def function(ctx: Context) -> str:
        log.append("top")
        await ctx.step.run("a", log.append, "a")
        log.append("after a")
        await ctx.step.sleep("nap", 1000)
        await ctx.group.parallel([lambda: ctx.step.run("b", log.append, "b"), lambda: ctx.step.run("c", str)])
        log.append("end")
        return "end"

    def function_sync(ctx: ContextSync) -> str:
        log.append("top")
        ctx.step.run("a", log.append, "a")
        log.append("after a")
        ctx.step.sleep("nap", 1000)
        ctx.group.parallel([lambda: ctx.step.run("b", log.append, "b"), lambda: ctx.step.run("c", str)])
        log.append("end")
        return "end"

    return function if kind == "async" else function_sync


async def test_each_hook_once_per_call_in_order(kinds: tuple[str, str, str]) -> None:
    function, middleware, server = kinds
    log: Log = []
    client = Client(
        app_id="app",
        is_production=False,
        middleware=[recording(log, "m", is_async=middleware == "async", hooks=HOOKS[:8])],
    )
    engine = engine_for(program(log, function), client=client, blocking=server == "sync")
    run = Run({"name": "e", "data": {}, "id": "1", "ts": 1})

    async def next_call() -> Log:
        log.clear()
        calls = len(run.answers)
        while len(run.answers) == calls:
            await engine.drive(run, steps=1)
        return [entry.removeprefix("m.") for entry in log]

    new, end = ["after_memoization", "before_execution"], ["after_execution", "transform_output", "before_response"]
    assert await next_call() == ["transform_input", *new, "top", "before_step", "a", "after_step", *end]
    assert await next_call() == ["transform_input", "top", *new, "after a", *end]
    # Several planned steps returned nothing yet: there is nothing to transform.
    assert await next_call() == ["transform_input", "top", "after a", *new, "after_execution", "before_response"]
    # A targeted call returns to where its step was found, and runs it alone.
    assert await next_call() == ["transform_input", "top", "after a", *new, "before_step", "b", "after_step", *end]
    targeted = await next_call()
    assert (targeted[0], targeted[-3:], targeted.count("after_memoization")) == ("transform_input", end, 1)
    assert await next_call() == ["transform_input", "top", "after a", *new, "end", *end]
    assert run.output == "end"


async def test_middleware_of_the_client_goes_around_that_of_the_function(kinds: tuple[str, str, str]) -> None:
    function, middleware, server = kinds
    log: Log = []
    is_async = middleware == "async"
    client = Client(
        app_id="app",
        is_production=False,
        middleware=[recording(log, name, is_async=is_async, hooks=HOOKS[:8]) for name in ("1", "2")],
    )
    own = [recording(log, name, is_async=not is_async, hooks=HOOKS[:8]) for name in ("3", "4")]

    async def one_step(ctx: Context) -> None:
        await ctx.step.run("a", str)

    def one_step_sync(ctx: ContextSync) -> None:
        ctx.step.run("a", str)

    handler = one_step if function == "async" else one_step_sync
    await complete(handler, client=client, middleware=own, blocking=server == "sync")
    for hook in HOOKS[:8]:
        order = [entry.partition(".")[0] for entry in log if entry.endswith(f".{hook}")]
        expected = list("4321" if hook in REVERSED else "1234")
        assert order == expected * (1 if hook.endswith("step") else 2), hook


async def test_one_middleware_is_made_for_each_call_with_the_frameworks_request() -> None:
    made = []

    def factory(client: Client, raw_request: object) -> MiddlewareSync:
        made.append((client, raw_request))
        return MiddlewareSync(client, raw_request)

    async def function(ctx: Context) -> None:
        await ctx.step.run("a", str)

    client = Client(app_id="app", is_production=False, middleware=[factory])
    await complete(function, client=client)
    assert [made_for for made_for, _ in made] == [client, client]
    assert made[0][1] is not made[1][1]


@pytest.mark.parametrize("blocking", [True, False])
async def test_async_middleware_of_a_sync_function_runs_in_the_portal(blocking: bool) -> None:
    threads: dict[str, set[str]] = {"hook": set(), "function": set()}

    class Where(Middleware):
        async def transform_input(self, *args: Any) -> None:
            await asyncio.sleep(0)
            threads["hook"].add(threading.current_thread().name)

    def function(ctx: ContextSync) -> None:
        threads["function"].add(threading.current_thread().name)

    await complete(function, client=Client(app_id="app", is_production=False, middleware=[Where]), blocking=blocking)
    assert threads["hook"] == {"durably-background-loop"}
    assert "durably-background-loop" not in threads["function"]


async def test_transform_input_changes_context_and_memos(kinds: tuple[str, str, str]) -> None:
    function, _, server = kinds

    class Change(MiddlewareSync):
        def transform_input(self, ctx: Any, function: Any, steps: StepMemos) -> None:
            assert function.id.startswith("app-")
            ctx.event = Event(name="other", data={"database": "connection"})
            for memo in steps.values():
                memo.data = f"changed {memo.data}"

    async def changed(ctx: Context) -> Any:
        return [ctx.event.data, await ctx.step.run("a", str, "a")]

    def changed_sync(ctx: ContextSync) -> Any:
        return [ctx.event.data, ctx.step.run("a", str, "a")]

    client = Client(app_id="app", is_production=False, middleware=[Change])
    output = await complete(changed if function == "async" else changed_sync, client=client, blocking=server == "sync")
    assert output == [{"database": "connection"}, "changed a"]


@pytest.mark.parametrize("hook", HOOKS[:8])
async def test_error_of_a_hook_ends_the_call_outside_of_the_function(hook: str, kinds: tuple[str, str, str]) -> None:
    function, middleware, server = kinds
    swallowed = []

    class HookError(Exception):
        pass

    def broken(self: Any, *args: Any) -> None:
        raise HookError(f"{hook} is broken")

    async def broken_later(self: Any, *args: Any) -> None:
        broken(self)

    async def careful(ctx: Context) -> str:
        for name in "ab":
            try:
                await ctx.step.run(name, str, name)
            except Exception as error:
                swallowed.append(error)
        return "end"

    def careful_sync(ctx: ContextSync) -> str:
        for name in "ab":
            try:
                ctx.step.run(name, str, name)
            except Exception as error:
                swallowed.append(error)
        return "end"

    base, method = (Middleware, broken_later) if middleware == "async" else (MiddlewareSync, broken)
    client = Client(app_id="app", is_production=False, middleware=[type("Broken", (base,), {hook: method})])
    handler = careful if function == "async" else careful_sync
    engine = engine_for(handler, client=client, blocking=server == "sync", max_attempts=2)
    for memos in ({}, {"86f7e437faa5a7fce15d1ddcb9eaeaea377667b8": {"data": "a"}}):
        run = Run({"name": "e", "data": {}, "id": "1", "ts": 1}, memos=dict(memos), stack=list(memos))
        await engine.drive(run)
        assert (run.status, run.output["name"]) == ("Failed", "HookError")
        assert run.output["message"] == f"{hook} is broken"
        assert not run.answers[-1].no_retry
    assert swallowed == []


async def test_outputs_and_errors_can_be_replaced(kinds: tuple[str, str, str]) -> None:
    function, _, server = kinds
    seen = []

    class Replace(MiddlewareSync):
        def transform_output(self, result: TransformOutputResult) -> None:
            seen.append((result.step and result.step.id, result.has_output(), type(result.error).__name__))
            if result.step is None:
                result.output = ["replaced", result.output]
            elif result.step.id == "good":
                result.output = f"better than {result.output}"
            elif result.step.id == "healed":
                result.error, result.output = None, "healed"
            else:
                result.error = durably.NonRetriableError("given up")

    def explode() -> None:
        raise ValueError("boom")

    async def steps(ctx: Context) -> Any:
        good, healed = await ctx.step.run("good", str, "good"), await ctx.step.run("healed", explode)
        try:
            await ctx.step.run("bad", explode)
        except durably.StepError as error:
            return [good, healed, error.name, error.message]

    def steps_sync(ctx: ContextSync) -> Any:
        good, healed = ctx.step.run("good", str, "good"), ctx.step.run("healed", explode)
        try:
            ctx.step.run("bad", explode)
        except durably.StepError as error:
            return [good, healed, error.name, error.message]

    client = Client(app_id="app", is_production=False, middleware=[Replace])
    output = await complete(steps if function == "async" else steps_sync, client=client, blocking=server == "sync")
    assert output == ["replaced", ["better than good", "healed", "NonRetriableError", "given up"]]
    assert seen == [
        ("good", True, "NoneType"),
        ("healed", False, "ValueError"),
        ("bad", False, "ValueError"),
        (None, True, "NoneType"),
    ]


async def test_step_hooks_get_the_step() -> None:
    seen: list[Any] = []

    class Steps(MiddlewareSync):
        def before_step(self, step: StepInfo) -> None:
            seen.append((step.id, step.index, step.op.value, len(step.hashed_id)))

        def after_step(self, step: StepInfo, result: TransformOutputResult) -> None:
            seen.append((step.id, step.index, result.output))

    async def function(ctx: Context) -> None:
        for number in range(2):
            await ctx.step.run("same", int, number)
        await ctx.step.sleep("nap", 1000)

    await complete(function, client=Client(app_id="app", is_production=False, middleware=[Steps]))
    assert seen == [("same", 0, "StepRun", 40), ("same", 0, 0), ("same", 1, "StepRun", 40), ("same", 1, 1)]


async def test_an_error_that_the_function_raises_is_transformed_and_answered() -> None:
    log: Log = []

    class Note(MiddlewareSync):
        def transform_output(self, result: TransformOutputResult) -> None:
            log.append(f"{type(result.error).__name__}, {result.has_output()}")

        def before_response(self) -> None:
            log.append("before_response")

    async def function(ctx: Context) -> None:
        raise durably.NonRetriableError("no")

    client = Client(app_id="app", is_production=False, middleware=[Note])
    assert (await fail(function, client=client))["message"] == "no"
    assert log == ["NonRetriableError, False", "before_response"]


# -- sending


@pytest.fixture
def http_engine() -> Iterator[HTTPEngine]:
    with serving_fake_engine() as engine:
        yield engine


@pytest.mark.parametrize("is_async", [True, False], ids=["async middleware", "sync middleware"])
async def test_sending_hooks_run_once_per_sending(is_async: bool, http_engine: HTTPEngine) -> None:
    log: Log = []
    client = Client(
        app_id="app",
        is_production=False,
        event_api_base_url=http_engine.origin,
        middleware=[recording(log, name, is_async=is_async) for name in "12"],
    )
    expected = ["1.before_send_events", "2.before_send_events", "2.after_send_events", "1.after_send_events"]

    await client.send(Event(name="e"))
    assert log == expected
    log.clear()
    await asyncio.to_thread(client.send_sync, [Event(name="e"), Event(name="e")])
    assert log == expected
    log.clear()
    await client.send(Event(name="e"), skip_middleware=True)
    assert log == []

    async def function(ctx: Context) -> Any:
        return await ctx.step.send_event("it", [Event(name="a", data={"n": 1}), Event(name="b")])

    run = await engine_for(function, client=client).run()
    assert [entry for entry in log if "send" in entry] == expected
    assert run.output == ["01EVENT" + "0" * 18 + str(index) for index in range(2)]
    sent = http_engine.to("/e/")[-1].json
    assert [(event["name"], event["data"]) for event in sent] == [("a", {"n": 1}), ("b", {})]


# -- the logger


async def test_the_logger_is_silent_while_memos_are_replayed(
    kinds: tuple[str, str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Each line is logged by the first call that reaches it, and by no other."""
    function, _, server = kinds

    async def talkative(ctx: Context) -> None:
        ctx.logger.info("top")
        await ctx.step.run("a", ctx.logger.info, "in a")
        ctx.logger.info("after a")
        tasks = [asyncio.create_task(ctx.step.sleep(name, 1000)) for name in ("first", "second")]
        _, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        ctx.logger.info("after the race")
        await ctx.step.run("b", ctx.logger.info, "in b")
        ctx.logger.info("end %s", "of it")

    def talkative_sync(ctx: ContextSync) -> None:
        ctx.logger.info("top")
        ctx.step.run("a", ctx.logger.info, "in a")
        ctx.logger.info("after a")
        ctx.group.parallel([lambda: ctx.step.sleep("first", 1000), lambda: ctx.step.sleep("second", 1000)])
        ctx.logger.info("after the race")
        ctx.step.run("b", ctx.logger.info, "in b")
        ctx.logger.info("end %s", "of it")

    caplog.set_level(logging.INFO, "durably")
    engine = engine_for(talkative if function == "async" else talkative_sync, blocking=server == "sync")
    run = await engine.run(pick=named("a", "first", "b", "second"))
    assert run.status == "Completed"
    function_id = engine.functions[0].id
    assert [record.getMessage() for record in caplog.records] == [
        f"[{function_id} 01RUN] top",
        f"[{function_id} 01RUN a] in a",
        f"[{function_id} 01RUN] after a",
        f"[{function_id} 01RUN] after the race",
        f"[{function_id} 01RUN b] in b",
        f"[{function_id} 01RUN] end of it",
    ]


# -- steps that the engine carries out, and hooks that block


async def test_middleware_can_replace_the_reported_steps(kinds: tuple[str, str, str]) -> None:
    function, middleware, server = kinds
    seen: list[Any] = []
    data = {"n": 1}

    def change(step: durably.TransformStepInput) -> None:
        seen.append((step.id, step.op.value))
        if step.op == "InvokeFunction" and step.opts is not None:
            step.opts = {**step.opts, "payload": {"data": "changed"}}

    class Change(MiddlewareSync):
        def transform_step_input(self, step: durably.TransformStepInput) -> None:
            change(step)

    class ChangeLater(Middleware):
        async def transform_step_input(self, step: durably.TransformStepInput) -> None:
            await asyncio.sleep(0)
            change(step)

    async def steps(ctx: Context) -> None:
        await ctx.step.run("run", str)
        await ctx.step.invoke_by_id("alone", function_id="other", data=data)
        ids = ("first", "second")
        await ctx.group.parallel([lambda i=i: ctx.step.invoke_by_id(i, function_id="other", data=data) for i in ids])

    def steps_sync(ctx: ContextSync) -> None:
        ctx.step.run("run", str)
        ctx.step.invoke_by_id("alone", function_id="other", data=data)
        ids = ("first", "second")
        ctx.group.parallel([lambda i=i: ctx.step.invoke_by_id(i, function_id="other", data=data) for i in ids])

    client = Client(app_id="app", is_production=False, middleware=[Change if middleware == "sync" else ChangeLater])
    engine = engine_for(steps if function == "async" else steps_sync, client=client, blocking=server == "sync")
    run = await engine.run()
    assert seen == [(step, "InvokeFunction") for step in ("alone", "first", "second")]
    invokes = [op for answer in run.answers if answer.status == 206 for op in answer.ops if op["op"] != "StepRun"]
    assert [op["opts"]["payload"] for op in invokes] == [{"data": "changed"}] * 3
    assert data == {"n": 1}


@pytest.mark.parametrize("base", [MiddlewareSync, inngest.MiddlewareSync])
@pytest.mark.parametrize("runs_in_thread", [True, False])
async def test_hooks_that_block_run_in_a_thread_of_async_functions(runs_in_thread: bool, base: type) -> None:
    threads: set[bool] = set()

    def note(self: Any, *args: Any) -> None:
        threads.add(threading.current_thread() is threading.main_thread())

    hooks = dict.fromkeys(HOOKS, note)
    middleware: Any = type("Blocking", (base,), {"runs_in_thread": runs_in_thread, **hooks})

    async def function(ctx: Context) -> None:
        await ctx.step.run("a", str)

    await complete(function, client=Client(app_id="app", is_production=False, middleware=[middleware]))
    assert threads == {not runs_in_thread}
