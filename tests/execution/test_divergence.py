"""Functions that are changed while runs are under way: docs/how-to/change-functions.md, claim by claim."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest

from durably import Client, Context, ContextSync, Event, TriggerEvent
from durably.comm import CommHandler
from durably.embedded.calls import sync_of
from durably.execution import StepIds
from durably.testing import TestEngine
from durably.testing.link import TestLink

from .engine import FakeEngine, Run, engine_for, named

Steps = list[str]
KINDS = ["async", "sync"]


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURABLY_STRICT_REPLAY", "0")


class Shop:
    """A function whose steps are changed under way. ``ran`` are the handlers that ran."""

    def __init__(self, kind: str, steps: Steps, **options: Any) -> None:
        self.steps = steps
        self.ran: list[str] = []

        async def order(ctx: Context) -> list[str]:
            return [await ctx.step.run(step, self.handle, step) for step in list(self.steps)]

        def order_sync(ctx: ContextSync) -> list[str]:
            return [ctx.step.run(step, self.handle, step) for step in list(self.steps)]

        order_sync.__name__ = "order"
        self.engine: FakeEngine = engine_for(order if kind == "async" else order_sync, **options)
        self.run = Run({"name": "test/event", "data": {}, "id": "01EVENT", "ts": 1_700_000_000_000})

    def handle(self, step: str) -> str:
        self.ran.append(step)
        return step

    async def carry_on(self, calls: int = 100) -> None:
        await self.engine.drive(self.run, steps=calls)

    async def change(self, steps: Steps, *, after: int) -> None:
        """Deploy other steps after ``after`` calls, and continue the run to its end."""
        await self.carry_on(after)
        self.steps = steps
        await self.carry_on()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


CHANGES: dict[str, tuple[Steps, Steps, int, Steps, str | None]] = {
    "nothing": (["a", "b", "c"], ["a", "b", "c"], 2, ["a", "b", "c"], None),
    "renamed": (
        ["charge", "mail", "done"],
        ["charge-card", "mail", "done"],
        2,
        ["charge", "mail", "charge-card", "done"],
        'found the new step "charge-card" without reaching steps that the run has finished: "charge", "mail"',
    ),
    "added after the finished ones": (["a", "b"], ["a", "b", "new"], 1, ["a", "b", "new"], None),
    "added before a finished one": (["a", "b"], ["new", "a", "b"], 1, ["a", "new", "b"], '"new" without reaching'),
    "removed": (["a", "b", "c"], ["b", "c"], 1, ["a", "b", "c"], '"b" without reaching'),
    "removed at the end": (["a", "b", "c"], ["a"], 2, ["a", "b"], "the function returned without reaching"),
    "in another order": (["a", "b", "c"], ["b", "a", "c"], 2, ["a", "b", "c"], 'reached step "b" earlier than'),
}
"""By change: the steps before and after, the calls before the change, the handlers that run, and the warning."""


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
async def test_changed_steps_run_by_their_ids_with_one_warning(
    kind: str, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, after, calls, ran, warning = CHANGES[change]
    shop = Shop(kind, before)
    await shop.change(after, after=calls)
    assert (shop.run.output, shop.ran) == (after, ran)
    lines = warnings(caplog)
    assert len(lines) == (warning is not None)
    if warning is not None:
        assert lines[0].startswith('function "app-order", run 01RUN: ')
        assert warning in lines[0]


async def test_removed_step_with_an_unknown_name_is_reported_by_its_hash(caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop("async", ["charge", "mail"])
    await shop.carry_on(1)
    after_deployment = Shop("async", ["charge-card", "mail"])
    after_deployment.run = shop.run
    await after_deployment.carry_on()
    [hashed_id, *_] = shop.run.stack
    assert f"one unknown to this process (SHA-1 of its id: {hashed_id[:12]}…)" in warnings(caplog)[0]


def test_step_ids_that_are_made_from_data_do_not_fill_the_memory() -> None:
    ids = StepIds()
    for number in range(25_000):
        ids.learn(f"charge-{number}", 0)
    assert max(len(ids.names), len(ids.hashes)) <= 10_000
    assert ids.names[ids.hashes["charge-24999"]] == "charge-24999"


# -- strict


@pytest.mark.parametrize("place", ["function", "client", "variable"])
@pytest.mark.parametrize("kind", KINDS)
async def test_strict_replay_fails_the_run_before_anything_runs_again(
    kind: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {}
    if place == "function":
        options["strict_replay"] = True
    elif place == "client":
        options["client"] = Client(app_id="app", is_production=False, strict_replay=True)
    else:
        monkeypatch.setenv("DURABLY_STRICT_REPLAY", "1")
    shop = Shop(kind, ["charge", "mail"], **options)
    await shop.change(["charge-card", "mail"], after=1)
    assert shop.run.status == "Failed"
    assert shop.run.output["name"] == "ReplayDivergedError"
    assert '"charge-card" without reaching steps that the run has finished: "charge"' in shop.run.output["message"]
    assert shop.ran == ["charge"]


# -- unstable ids


@pytest.mark.parametrize("kind", KINDS)
async def test_an_id_that_changes_from_call_to_call_fails_the_run_soon(kind: str) -> None:
    numbers = itertools.count()
    ran: list[int] = []

    async def order(ctx: Context) -> Any:
        return await ctx.step.run(f"pay-{next(numbers)}", ran.append, 1)

    def order_sync(ctx: ContextSync) -> Any:
        return ctx.step.run(f"pay-{next(numbers)}", ran.append, 1)

    run = await engine_for(order if kind == "async" else order_sync).run()
    assert run.status == "Failed"
    assert run.output["name"] == "StepIdUnstableError"
    assert "the ids of its steps change from call to call" in run.output["message"]
    assert len(ran) == 5


# -- changes that are not divergences


async def race(ctx: Context) -> str:
    tasks = [asyncio.create_task(ctx.step.run(name, str, name)) for name in ("a", "b")]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await ctx.step.run("after", str)
    return done.pop().result()


async def cancelled_branch(ctx: Context) -> Any:
    async def branch() -> None:
        await ctx.step.run("b", str)
        await ctx.step.run("b2", str)

    task = asyncio.create_task(branch())
    await ctx.step.run("a", str)
    task.cancel()
    await asyncio.wait([task])
    return await ctx.step.run("after", str, "done")


async def timeout(ctx: Context) -> Any:
    try:
        async with ctx.group.timeout("deadline", 1_000):
            await ctx.step.run("a", str)
            await ctx.step.run("b", str)
    except TimeoutError:
        pass
    return await ctx.step.run("after", str, "done")


async def error_path(ctx: Context) -> Any:
    try:
        await asyncio.gather(ctx.step.run("a", float, "x"), ctx.step.run("b", str))
    except Exception:
        return await ctx.step.run("after", str, "done")


def group_sync(ctx: ContextSync) -> Any:
    def branch(name: str) -> Callable[[], Any]:
        return lambda: [ctx.step.run(f"{name}{number}", str, name) for number in range(3)]

    ctx.group.parallel([branch("a"), branch("b")])
    return ctx.step.run("after", str, "done")


def transient_error(ctx: ContextSync) -> Any:
    ctx.step.run("a", str)
    if not ctx.attempt and len(_failures) == 1:
        _failures.pop()
        raise ConnectionError
    ctx.step.run("b", str)
    return ctx.step.run("after", str, "done")


_failures: list[int] = []


@pytest.mark.parametrize("order", [("a", "b", "deadline"), ("b", "a", "deadline"), ("deadline", "b", "b2", "a")])
@pytest.mark.parametrize("function", [race, cancelled_branch, timeout, error_path, group_sync, transient_error])
async def test_ordinary_functions_do_not_diverge(
    function: Any, order: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    _failures[:] = [1]
    run = await engine_for(function, strict_replay=True).run(pick=named(*order))
    assert run.status == "Completed", run.output
    assert not warnings(caplog)


# -- deployments in a real engine


class Deployments:
    """An app whose functions are replaced while its engine has runs under way."""

    def __init__(self, engine: TestEngine, client: Client) -> None:
        self._engine = engine
        self._client = client

    async def deploy(self, **triggers: Any) -> None:
        """Functions of these ids, which sleep for a day and return their id."""
        functions = [self._function(fn_id, trigger) for fn_id, trigger in triggers.items()]
        handler = CommHandler(client=self._client, framework="testing", functions=functions)
        link = self._client.in_process
        assert isinstance(link, TestLink)
        link.handlers[self._client.app_id] = handler
        await self._engine._engine.sync_app(sync_of(handler), in_process=True)

    def _function(self, fn_id: str, trigger: Any) -> Any:
        @self._client.create_function(fn_id=fn_id, trigger=trigger, retries=1)
        async def function(ctx: Context) -> str:
            await ctx.step.sleep("nap", "1d")
            return fn_id

        return function


PLACED = TriggerEvent(event="placed")


async def test_a_second_function_takes_new_events_and_the_old_one_ends_its_runs() -> None:
    client = Client(app_id="app", is_production=False)
    async with TestEngine(client, []) as engine:
        shop = Deployments(engine, client)
        await shop.deploy(order=PLACED)
        old = await engine.send(Event(name="placed"))
        await engine.advance("1h")
        await shop.deploy(order=[], order_2=PLACED)
        new = await engine.send(Event(name="placed"))
        await engine.advance("2d")
        old.assert_completed(output="order")
        new.assert_completed(output="order_2")


async def test_runs_of_a_renamed_function_fail_when_their_attempts_are_used_up() -> None:
    client = Client(app_id="app", is_production=False)
    async with TestEngine(client, []) as engine:
        shop = Deployments(engine, client)
        await shop.deploy(order=PLACED)
        old = await engine.send(Event(name="placed"))
        await engine.advance("1h")
        await shop.deploy(renamed=PLACED)
        await engine.advance("2d")
        old.assert_failed(message="app-order")
