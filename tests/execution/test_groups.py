"""``group.parallel`` in both modes and both kinds of functions, nested and mixed, and ``group.timeout``."""

import asyncio
from typing import Any

import pytest

import durably
from durably import Client, Context, ContextSync, ParallelMode

from .engine import NULL, Run, complete, engine_for, fail, first, last, named
from .test_asyncio import explode

WAIT, RACE = ParallelMode.WAIT, ParallelMode.RACE


def modes(run: Run, call: int = 0) -> dict[str, str | None]:
    return {op["userland"]["id"]: (op.get("opts") or {}).get("parallelMode") for op in run.answers[call].ops}


def discoveries(run: Run) -> int:
    """Calls that found steps or ended the run, rather than executing a planned one."""
    return sum(answer.status == 200 or answer.ops[0]["op"] not in ("StepRun", "StepError") for answer in run.answers)


@pytest.mark.parametrize("mode", [WAIT, RACE])
@pytest.mark.parametrize("pick", [first, last], ids=["in order", "in reverse"])
@pytest.mark.parametrize("kind", ["async", "sync", "sync, blocking"])
async def test_parallel_runs_all_and_returns_in_order(mode: ParallelMode, pick: Any, kind: str) -> None:
    async def function(ctx: Context) -> Any:
        async def branch() -> Any:
            await ctx.step.sleep("c1", 1000)
            return await ctx.step.run("c2", str, "c")

        return await ctx.group.parallel(
            (lambda: ctx.step.run("a", str, "a"), lambda: ctx.step.wait_for_event("b", event="e", timeout=1), branch),
            parallel_mode=mode,
        )

    def function_sync(ctx: ContextSync) -> Any:
        def branch() -> Any:
            ctx.step.sleep("c1", 1000)
            return ctx.step.run("c2", str, "c")

        return ctx.group.parallel(
            (lambda: ctx.step.run("a", str, "a"), lambda: ctx.step.wait_for_event("b", event="e", timeout=1), branch),
            parallel_mode=mode,
        )

    handler = function if kind == "async" else function_sync
    engine = engine_for(
        handler, blocking="blocking" in kind, replies={"b": {"name": "e", "data": {}, "id": "1", "ts": 1}}
    )
    run = await engine.run(pick=pick)
    assert run.output[0] == "a"
    assert run.output[1]["name"] == "e"
    assert run.output[2] == "c"
    assert run.answers[0].found() == [("StepPlanned", "a"), ("WaitForEvent", "b"), ("Sleep", "c1")]
    assert modes(run) == dict.fromkeys(("a", "b", "c1"), "race" if mode is RACE else None)
    if mode is WAIT:
        assert discoveries(run) == 3


@pytest.mark.parametrize("mode", [WAIT, RACE, None])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_executed_steps_repeat_the_mode_with_which_they_were_planned(
    kind: str, mode: ParallelMode | None
) -> None:
    async def function(ctx: Context) -> Any:
        branches = [lambda: ctx.step.run("good", str), lambda: ctx.step.run("bad", explode)]
        if mode is None:
            await asyncio.gather(*(branch() for branch in branches))
        else:
            await ctx.group.parallel(branches, mode)

    def function_sync(ctx: ContextSync) -> Any:
        ctx.group.parallel([lambda: ctx.step.run("good", str), lambda: ctx.step.run("bad", explode)], mode or RACE)

    run = await engine_for(function if kind == "async" else function_sync, max_attempts=2).run()
    reported = [
        (op["op"], (op.get("opts") or {}).get("parallelMode"))
        for answer in run.answers
        if answer.status == 206
        for op in answer.ops
    ]
    expected = None if mode is WAIT else "race"
    assert {opcode for opcode, _ in reported} == {"StepPlanned", "StepRun", "StepError", "StepFailed"}
    assert {given for _, given in reported} == {expected}


async def test_parallel_of_no_callables_is_empty() -> None:
    async def function(ctx: Context) -> Any:
        return await ctx.group.parallel([])

    def function_sync(ctx: ContextSync) -> Any:
        return ctx.group.parallel([])

    assert await complete(function) == []
    assert await complete(function_sync) == []


@pytest.mark.parametrize("pick", [first, last], ids=["in order", "in reverse"])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_groups_in_groups_keep_their_modes(pick: Any, kind: str) -> None:
    async def function(ctx: Context) -> Any:
        def leaf(name: str) -> Any:
            return lambda: ctx.step.run(name, str, name)

        return await ctx.group.parallel(
            [
                leaf("a"),
                lambda: ctx.group.parallel([leaf("b"), leaf("c")], RACE),
                lambda: ctx.group.parallel([leaf("d"), lambda: ctx.group.parallel([leaf("e")], WAIT)], RACE),
            ]
        )

    def function_sync(ctx: ContextSync) -> Any:
        def leaf(name: str) -> Any:
            return lambda: ctx.step.run(name, str, name)

        return ctx.group.parallel(
            [
                leaf("a"),
                lambda: ctx.group.parallel([leaf("b"), leaf("c")], RACE),
                lambda: ctx.group.parallel([leaf("d"), lambda: ctx.group.parallel([leaf("e")], WAIT)], RACE),
            ]
        )

    run = await engine_for(function if kind == "async" else function_sync).run(pick=pick)
    assert run.output == ["a", ["b", "c"], ["d", ["e"]]]
    assert modes(run) == {"a": None, "b": "race", "c": "race", "d": "race", "e": None}


async def test_plain_asyncio_inside_a_group_and_beside_it() -> None:
    async def function(ctx: Context) -> Any:
        return await asyncio.gather(
            ctx.group.parallel(
                [lambda: asyncio.gather(ctx.step.run("a", str, "a"), ctx.step.run("b", str, "b"))]  # type: ignore[list-item]
            ),
            ctx.step.run("c", str, "c"),
        )

    run = await engine_for(function).run()
    assert run.output == [[["a", "b"]], "c"]
    assert modes(run) == {"a": None, "b": None, "c": "race"}


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_error_in_a_group_can_be_caught_while_the_others_continue(kind: str) -> None:
    async def function(ctx: Context) -> Any:
        try:
            await ctx.group.parallel([lambda: ctx.step.run("bad", explode), lambda: ctx.step.sleep("long", 1000)], RACE)
        except durably.StepError as error:
            return [error.message, await ctx.step.run("after", str, "after")]

    def function_sync(ctx: ContextSync) -> Any:
        try:
            ctx.group.parallel([lambda: ctx.step.run("bad", explode), lambda: ctx.step.sleep("long", 1000)], RACE)
        except durably.StepError as error:
            return [error.message, ctx.step.run("after", str, "after")]

    run = await engine_for(function if kind == "async" else function_sync).run(pick=named("bad", "after", "long"))
    assert run.output == ["boom", "after"]
    assert len(run.stack) == 2, "the run did not wait for what was still under way"
    assert modes(run, -3)["after"] == "race"


@pytest.mark.parametrize(
    "group",
    [
        lambda ctx, leaf: ctx.group.parallel([lambda: (leaf("a"), leaf("s")), lambda: (leaf("b"), leaf("s"))], RACE),
        lambda ctx, leaf: ctx.group.parallel([lambda: (leaf("s"), leaf("s")), lambda: leaf("s")]),
        lambda ctx, leaf: ctx.group.parallel(
            [lambda: ctx.group.parallel([lambda: (leaf("a"), leaf("s"))]), lambda: (leaf("b"), leaf("s"))]
        ),
    ],
    ids=["racing branches", "in different places", "in nested groups"],
)
async def test_ambiguous_ids_in_a_sync_function_are_refused(group: Any) -> None:
    def function(ctx: ContextSync) -> Any:
        return group(ctx, lambda step_id: ctx.step.run(step_id, str))

    for pick in (first, last):
        run = await engine_for(function).run(pick=pick)
        assert (run.status, run.output["code"]) == ("Failed", "step_id_ambiguous")
        assert 'step id "s" repeats across branches' in run.output["message"]
        assert run.answers[-1].no_retry


async def test_an_id_that_an_abandoned_branch_uses_too_is_refused() -> None:
    """An error ended the group, but each call runs its other branches as far as they get."""

    def function(ctx: ContextSync) -> Any:
        def goes_on() -> None:
            ctx.step.run("slow", str)
            ctx.step.run("same", str, "branch")

        try:
            ctx.group.parallel([lambda: ctx.step.run("bad", explode), goes_on], RACE)
        except durably.StepError:
            return ctx.step.run("same", str, "function")

    error = await fail(function)
    assert error["code"] == "step_id_ambiguous"


# -- timeouts


@pytest.mark.parametrize("expires", [True, False])
async def test_timeout_ends_its_block_or_lets_it_finish(expires: bool) -> None:
    log = []

    async def function(ctx: Context) -> Any:
        try:
            async with ctx.group.timeout("deadline", 60_000):
                log.append(await ctx.step.run("slow", str, "slow"))
        except TimeoutError as error:
            log.append(str(error))
        return await ctx.step.run("after", str, "after")

    run = await engine_for(function).run(pick=named(*(("deadline", "after") if expires else ("slow", "after"))))
    assert run.output == "after"
    assert set(log) == {'group.timeout "deadline" is over' if expires else "slow"}
    assert run.answers[0].found() == [("Sleep", "deadline"), ("StepPlanned", "slow")]
    assert modes(run) == {"deadline": "race", "slow": "race"}
    assert len(run.stack) == 2, "the run did not wait for the loser of the race"


async def test_an_uncaught_timeout_fails_the_run() -> None:
    async def function(ctx: Context) -> Any:
        async with ctx.group.timeout("deadline", 60_000):
            await ctx.step.wait_for_event("it", event="e", timeout=120_000)

    run = await engine_for(function).run(pick=named("deadline"))
    assert run.output["name"] == "DeadlineError"
    assert run.answers[-1].no_retry


@pytest.mark.parametrize("winner", ["inner", "outer", "work"])
async def test_inner_and_outer_timeouts_end_their_blocks(winner: str) -> None:
    async def function(ctx: Context) -> Any:
        ended = []
        try:
            async with ctx.group.timeout("outer", 60_000):
                try:
                    async with ctx.group.timeout("inner", 30_000):
                        ended.append(await ctx.step.run("work", str, "work"))
                except TimeoutError:
                    ended.append("inner")
        except TimeoutError:
            ended.append("outer")
        return ended

    run = await engine_for(function).run(pick=named(winner, *{"inner", "outer", "work"} - {winner}))
    assert run.output == [winner]


async def test_a_timeout_around_branches_cancels_them_all() -> None:
    async def function(ctx: Context) -> Any:
        try:
            async with ctx.group.timeout("deadline", 1000), asyncio.TaskGroup() as group:
                tasks = [group.create_task(ctx.step.sleep(f"long-{number}", 60_000)) for number in range(3)]
        except TimeoutError:
            return [task.cancelled() for task in tasks]

    run = await engine_for(function).run(pick=named("deadline"))
    assert run.output == [True, True, True]


async def test_a_timeout_in_a_group_that_waits_races_nevertheless() -> None:
    async def function(ctx: Context) -> Any:
        async def guarded() -> str:
            try:
                async with ctx.group.timeout("deadline", 1000):
                    await ctx.step.sleep("long", 60_000)
            except TimeoutError:
                return await ctx.step.run("late", str, "late")
            return "in time"

        return await ctx.group.parallel([guarded, lambda: ctx.step.run("other", str, "other")])

    run = await engine_for(function).run(pick=named("deadline", "other", "late", "long"))
    assert run.output == ["late", "other"]
    assert modes(run) == {"deadline": "race", "long": "race", "other": None}
    assert len(run.stack) == 3


async def test_a_sync_function_has_no_timeout() -> None:
    def function(ctx: ContextSync) -> Any:
        ctx.group.timeout("deadline", 1)

    error = await fail(function, replies={"x": NULL})
    assert error["code"] == "async_unsupported"
    assert 'group.timeout("deadline") needs an async function' in error["message"]


async def test_branches_that_were_called_already_are_refused() -> None:
    async def with_steps(ctx: Context) -> None:
        step = ctx.step.run("a", str)
        try:
            await ctx.group.parallel([step])  # type: ignore[list-item]
        finally:
            step.close()

    def with_results(ctx: ContextSync) -> None:
        ctx.group.parallel([ctx.step.run("a", int)])  # type: ignore[list-item]

    error = await fail(with_steps)
    assert error["code"] == "function_config_invalid"
    assert "number 1 is a coroutine: make them async functions, or lambdas: `lambda: ctx.step.run(" in error["message"]
    assert "number 1 is a int: make them functions, or lambdas" in (await fail(with_results))["message"]


async def test_a_durable_function_is_invoked_and_not_called() -> None:
    async def inner(ctx: Context) -> None: ...

    function: Any = Client(app_id="app", is_production=False).create_function(fn_id="inner", trigger=[])(inner)

    async def as_handler(ctx: Context) -> None:
        await ctx.step.run("a", function)

    async def by_call(ctx: Context) -> None:
        await function(ctx)

    assert "ctx.step.invoke(" in (await fail(as_handler))["message"]
    assert 'function "app-inner" cannot be called' in (await fail(by_call))["message"]
