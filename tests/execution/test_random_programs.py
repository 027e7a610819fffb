"""Random programs of steps in sequence, in parallel and in races; ids repeat, and steps end in random orders.

Whatever happens, each result reaches its own step, no handler runs twice, and a call is a function of its request.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import durably
from durably import Client, Context, ContextSync, ParallelMode
from durably.execution import Durations

from .engine import FakeEngine, Job, Run

CLIENT = Client(app_id="app", is_production=False)
TRIGGER = durably.TriggerEvent(event="test/event")


@dataclass(frozen=True)
class Leaf:
    """A step; ids come from a small alphabet, so that they repeat."""

    step_id: str
    is_sleep: bool


@dataclass(frozen=True)
class Tree:
    """``how`` its branches are run."""

    how: str
    branches: tuple["Leaf | Tree", ...]


LEAVES = st.builds(Leaf, st.sampled_from("abc"), st.sampled_from([False, False, False, True]))


def programs(hows: Sequence[str]) -> st.SearchStrategy[Leaf | Tree]:
    def extend(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        branches = st.lists(inner, min_size=1, max_size=4).map(tuple)
        return st.builds(Tree, st.sampled_from(hows), branches)

    return st.recursive(LEAVES, extend, max_leaves=10)


class Program:
    """Runs a tree, and checks in each call that every step gives what its own handler made of its own arguments."""

    def __init__(self, tree: Leaf | Tree, *, has_unique_ids: bool = False) -> None:
        self.tree = tree
        self.has_unique_ids = has_unique_ids
        self.handled: Counter[str] = Counter()

    def handle(self, path: str, *, again: str) -> str:
        assert path == again
        self.handled[path] += 1
        return f"done {path}"

    async def run(self, ctx: Context) -> Any:
        return await self._run(ctx, self.tree, "0")

    async def _run(self, ctx: Context, node: Leaf | Tree, path: str) -> Any:
        if isinstance(node, Leaf):
            if node.is_sleep:
                assert await ctx.step.sleep(node.step_id, 1000) is None
                return f"done {path}"
            result = await ctx.step.run(node.step_id, self.handle, path, again=path)
            assert result == f"done {path}", f"the step at {path} was given the result {result!r}"
            return result
        branches = [
            lambda child=child, number=number: self._run(ctx, child, f"{path}.{number}")
            for number, child in enumerate(node.branches)
        ]
        return await RUNNERS[node.how](ctx, branches)

    def run_sync(self, ctx: ContextSync) -> Any:
        return self._run_sync(ctx, self.tree, "0")

    def _run_sync(self, ctx: ContextSync, node: Leaf | Tree, path: str) -> Any:
        if isinstance(node, Leaf):
            step_id = f"{node.step_id}-{path}" if self.has_unique_ids else node.step_id
            if node.is_sleep:
                ctx.step.sleep(step_id, 1000)
                return f"done {path}"
            result = ctx.step.run(step_id, self.handle, path, again=path)
            assert result == f"done {path}", f"the step at {path} was given the result {result!r}"
            return result
        branches = [
            lambda child=child, number=number: self._run_sync(ctx, child, f"{path}.{number}")
            for number, child in enumerate(node.branches)
        ]
        if node.how == "sequence":
            return [branch() for branch in branches]
        return list(ctx.group.parallel(branches, ParallelMode(node.how)))

    def expected(self, node: Leaf | Tree | None = None, path: str = "0") -> Any:
        """The run's output, in any order, if the program has no races."""
        node = node or self.tree
        if isinstance(node, Leaf):
            return f"done {path}"
        return [self.expected(child, f"{path}.{number}") for number, child in enumerate(node.branches)]


Branches = list[Callable[[], Awaitable[Any]]]


async def _sequence(ctx: Context, branches: Branches) -> list[Any]:
    return [await branch() for branch in branches]


async def _gather(ctx: Context, branches: Branches) -> list[Any]:
    return await asyncio.gather(*(branch() for branch in branches))


async def _task_group(ctx: Context, branches: Branches) -> list[Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_await(branch)) for branch in branches]
    return [task.result() for task in tasks]


async def _tasks_awaited_later(ctx: Context, branches: Branches) -> list[Any]:
    tasks = [asyncio.create_task(_await(branch)) for branch in branches]
    return list(reversed([await task for task in reversed(tasks)]))


async def _wait_group(ctx: Context, branches: Branches) -> list[Any]:
    return list(await ctx.group.parallel(branches))


async def _race_group(ctx: Context, branches: Branches) -> list[Any]:
    return list(await ctx.group.parallel(branches, ParallelMode.RACE))


async def _one_at_a_time(ctx: Context, branches: Branches) -> list[Any]:
    lock = asyncio.Lock()

    async def guarded(branch: Callable[[], Awaitable[Any]]) -> Any:
        async with lock:
            return await branch()

    return await asyncio.gather(*(guarded(branch) for branch in branches))


async def _first(ctx: Context, branches: Branches) -> list[Any]:
    """The first branch to end; the others are cancelled."""
    tasks = [asyncio.create_task(_await(branch)) for branch in branches]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return [next(task for task in tasks if task in done).result()]


async def _in_order_of_end(ctx: Context, branches: Branches) -> list[Any]:
    tasks = [asyncio.create_task(_await(branch)) for branch in branches]
    return [await task for task in asyncio.as_completed(tasks)]


async def _await(branch: Callable[[], Awaitable[Any]]) -> Any:
    return await branch()


RUNNERS: dict[str, Callable[[Context, Branches], Awaitable[Any]]] = {
    "sequence": _sequence,
    "gather": _gather,
    "task group": _task_group,
    "later": _tasks_awaited_later,
    "wait": _wait_group,
    "race": _race_group,
    "lock": _one_at_a_time,
    "first": _first,
    "as completed": _in_order_of_end,
}
IN_THEIR_ORDER = ("sequence", "gather", "task group", "later", "wait", "race", "lock")

check = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


async def drive(engine: FakeEngine, data: st.DataObject) -> Run:
    """A whole run in an order of the generator's choosing, each request asked twice on its way."""

    def pick(jobs: Sequence[Job]) -> int:
        return data.draw(st.integers(0, len(jobs) - 1)) if len(jobs) > 1 else 0

    run = Run({"name": "test/event", "data": {}, "id": "01EVENT", "ts": 1})
    while not run.is_over:
        await assert_same_again(engine, run)
        await engine.drive(run, pick=pick, steps=1)
    return run


async def assert_same_again(engine: FakeEngine, state: Run) -> bytes:
    """Ask twice, without letting anything be executed."""
    answers = [await engine.call(state, disable_immediate_execution=True) for _ in range(2)]
    assert answers[0].body == answers[1].body
    return answers[0].body


async def assert_prefixes(engine: FakeEngine, run: Run) -> None:
    """At each point of its history the run finds the step that ended next."""
    for length, step_id in enumerate(run.stack):
        body = await assert_same_again(engine, run.state_at(length))
        assert step_id.encode() in body


@pytest.fixture
def all_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are found at once are executed in one call where the engine lets it."""
    monkeypatch.setattr(Durations, "are_quick", lambda self, steps: True)


def engine_for_program(handler: Callable[..., Any], together: str | None) -> FakeEngine:
    make = CLIENT.create_function(fn_id="program", trigger=TRIGGER, checkpointing=together == "checkpointed")
    return FakeEngine(CLIENT, [make(handler)], together=together is not None)


@pytest.mark.usefixtures("all_are_quick")
@pytest.mark.parametrize("together", [None, "answered", "checkpointed"])
@given(tree=programs(IN_THEIR_ORDER), data=st.data())
@check
async def test_without_races_every_order_gives_the_same(
    tree: Leaf | Tree, data: st.DataObject, together: str | None
) -> None:
    program = Program(tree)
    engine = engine_for_program(program.run, together)
    run = await drive(engine, data)
    assert (run.status, run.output) == ("Completed", program.expected())
    assert set(program.handled.values()) <= {1}
    await assert_prefixes(engine, run)


@pytest.mark.usefixtures("all_are_quick")
@pytest.mark.parametrize("together", [None, "answered", "checkpointed"])
@given(tree=programs(list(RUNNERS)), data=st.data())
@check
async def test_with_races_no_result_goes_astray(tree: Leaf | Tree, data: st.DataObject, together: str | None) -> None:
    program = Program(tree)
    engine = engine_for_program(program.run, together)
    run = await drive(engine, data)
    assert run.status == "Completed", run.output
    assert set(program.handled.values()) <= {1}
    for length in range(len(run.stack)):
        await assert_same_again(engine, run.state_at(length))
    finished = await engine.call(run)
    assert (finished.status, finished.json) == (200, run.output)


@pytest.mark.usefixtures("all_are_quick")
@given(tree=programs(("sequence", "wait", "race")), data=st.data())
@check
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking server", "async server"])
@pytest.mark.parametrize("together", [None, "answered", "checkpointed"])
async def test_sync_functions_with_ids_of_their_own(
    tree: Leaf | Tree, data: st.DataObject, blocking: bool, together: str | None
) -> None:
    program = Program(tree, has_unique_ids=True)
    engine = engine_for_program(program.run_sync, together)
    engine.blocking = blocking
    run = await drive(engine, data)
    assert (run.status, run.output) == ("Completed", program.expected())
    assert set(program.handled.values()) <= {1}
    await assert_prefixes(engine, run)


@given(tree=programs(("sequence", "wait", "race")), data=st.data())
@check
async def test_sync_functions_give_the_right_results_or_refuse_the_ids(tree: Leaf | Tree, data: st.DataObject) -> None:
    program = Program(tree)
    engine = FakeEngine(CLIENT, [CLIENT.create_function(fn_id="program", trigger=TRIGGER)(program.run_sync)])
    run = await drive(engine, data)
    assert set(program.handled.values()) <= {1}
    if run.status == "Completed":
        assert run.output == program.expected()
    else:
        assert run.output["code"] == "step_id_ambiguous", run.output
