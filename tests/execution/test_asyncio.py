"""Plain asyncio over steps: what works in any coroutine works in a durable function, at every replay the same."""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

import durably
from durably import Context
from durably.execution import idle_detection
from durably.protocol.opcodes import hash_step_id

from .engine import complete, engine_for, fail, first, last, named


def explode() -> None:
    raise ValueError("boom")


async def test_gather_finds_all_then_runs_each_in_a_call_of_its_own() -> None:
    ran = []

    def handle(name: str) -> str:
        ran.append(name)
        return name.upper()

    async def function(ctx: Context) -> Any:
        results = await asyncio.gather(*(ctx.step.run(name, handle, name) for name in "abc"))
        return [*results, await ctx.step.run("d", handle, "d")]

    engine = engine_for(function)
    run = await engine.run()
    assert run.output == ["A", "B", "C", "D"]
    assert ran == ["a", "b", "c", "d"]
    assert run.answers[0].found() == [("StepPlanned", name) for name in "abc"]
    assert all(op["opts"] == {"parallelMode": "race"} for op in run.answers[0].ops)


async def test_task_group_raises_the_group_and_cancels_the_rest() -> None:
    async def function(ctx: Context) -> Any:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.step.run("bad", explode))
                waiting = group.create_task(ctx.step.sleep("long", 60_000))
        except* durably.StepError as errors:
            messages = [error.message for error in errors.exceptions]  # type: ignore[union-attr]
        return [messages, waiting.cancelled(), await ctx.step.run("after", str, "after")]

    run = await engine_for(function).run(pick=named("bad", "after", "long"))
    assert run.output == [["boom"], True, "after"]


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
async def test_as_completed_yields_in_the_order_of_the_engine(order: str) -> None:
    async def function(ctx: Context) -> Any:
        return [await result for result in asyncio.as_completed([ctx.step.run(name, str, name) for name in "abc"])]

    run = await engine_for(function).run(pick=named(*order))
    assert run.output == list(order)


async def test_ops_are_in_the_order_in_which_steps_were_made() -> None:
    """``as_completed`` starts its coroutines in the order of a set, which differs from call to call."""

    async def function(ctx: Context) -> Any:
        return [await result for result in asyncio.as_completed([ctx.step.run(f"{n}", int, n) for n in range(20)])]

    engine = engine_for(function)
    run = await engine.run()
    assert [step_id for _, step_id in run.answers[0].found()] == [str(n) for n in range(20)]


async def test_a_task_left_behind_by_a_function_that_ends_is_cancelled() -> None:
    left = []

    async def branch(ctx: Context) -> None:
        try:
            await ctx.step.sleep("long", 60_000)
        except asyncio.CancelledError:
            left.append("cancelled")
            raise

    async def function(ctx: Context) -> str:
        left.append("begun")
        asyncio.create_task(branch(ctx))  # noqa: RUF006
        await asyncio.sleep(0)
        return "end"

    assert await complete(function) == "end"
    assert left == ["begun", "cancelled"]


async def test_shielded_steps_complete() -> None:
    async def function(ctx: Context) -> Any:
        shielded = asyncio.ensure_future(ctx.step.run("a", str, "a"))
        waiting = asyncio.ensure_future(asyncio.wait([asyncio.shield(shielded)]))
        first = await asyncio.gather(asyncio.shield(ctx.step.run("b", str, "b")), ctx.step.run("c", str, "c"))
        waiting.cancel()
        return [*first, await asyncio.shield(shielded)]

    assert await complete(function) == ["b", "c", "a"]


async def test_asyncio_primitives_work_between_branches() -> None:
    """Branches wait for each other by every primitive that asyncio has; steps stand before and after."""

    async def function(ctx: Context) -> Any:
        event, lock, queue = asyncio.Event(), asyncio.Lock(), asyncio.Queue[str](maxsize=1)
        condition, semaphore, barrier = asyncio.Condition(), asyncio.Semaphore(1), asyncio.Barrier(2)
        log: list[str] = []

        async def step(name: str) -> None:
            log.append(await ctx.step.run(name, str, name))

        async def one() -> None:
            async with lock, semaphore:
                await step("one in lock")
            event.set()
            await queue.put("x")
            await queue.put("y")
            await step("one has put")
            async with condition:
                condition.notify_all()
            await barrier.wait()
            await step("one at the end")

        async def two() -> None:
            await event.wait()
            async with lock, semaphore:
                await step("two in lock")
            assert [await queue.get(), await queue.get()] == ["x", "y"]
            queue.task_done()
            await step("two has got")
            await barrier.wait()
            await step("two at the end")

        async def three() -> None:
            async with condition:
                await condition.wait()
            await step("three notified")

        await asyncio.gather(three(), two(), one())
        return log

    for pick in (first, last):
        run = await engine_for(function).run(pick=pick)
        assert sorted(run.output) == sorted(
            [
                "one in lock",
                "two in lock",
                "one has put",
                "two has got",
                "three notified",
                "one at the end",
                "two at the end",
            ]
        )
        assert run.output.index("one in lock") < run.output.index("two in lock") < run.output.index("two has got")


async def test_tasks_that_never_end_do_not_hold_a_call_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_detection, "_STALL_SECONDS", 0.02)
    beats = []

    async def heartbeat() -> None:
        while True:
            beats.append(1)
            await asyncio.sleep(0.001)

    async def spin() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def function(ctx: Context) -> Any:
        tasks = [asyncio.create_task(heartbeat()), asyncio.create_task(spin())]
        results = [await ctx.step.run(name, str, name) for name in "abc"]
        for task in tasks:
            task.cancel()
        return results

    assert await complete(function) == ["a", "b", "c"]
    assert beats


async def test_a_target_behind_slow_io_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run would fail if the call gave the step up for gone."""
    monkeypatch.setattr(idle_detection, "_STALL_SECONDS", 0.01)

    async def function(ctx: Context) -> Any:
        async def slow() -> Any:
            if calls > 1:
                await asyncio.sleep(0.1)  # far beyond the call's patience
            return await ctx.step.run("slow", str, "slow")

        nonlocal calls
        calls += 1
        return await asyncio.gather(ctx.step.run("quick", str, "quick"), slow())

    calls = 0
    run = await engine_for(function).run(pick=named("slow", "quick"))
    assert run.output == ["quick", "slow"]


async def test_slow_io_is_waited_for_where_nothing_new_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that reports only what the engine knows already is followed by none until one of those steps has ended."""
    monkeypatch.setattr(idle_detection, "_STALL_SECONDS", 0.01)

    async def function(ctx: Context) -> Any:
        async def branch() -> Any:
            await ctx.step.run("before", str, "before")
            await asyncio.sleep(0.1)  # far beyond the call's patience
            return await ctx.step.run("after", str, "after")

        return await asyncio.gather(ctx.step.sleep("month", 30 * 86_400_000), branch())

    engine = engine_for(function)
    run = await engine.run(pick=named("before", "after", "month"))
    assert [answer.found() for answer in run.answers if answer.status == 206] == [
        [("Sleep", "month"), ("StepPlanned", "before")],
        [("StepRun", "before")],
        [("Sleep", "month"), ("StepPlanned", "after")],
        [("StepRun", "after")],
        [("Sleep", "month")],
    ]


async def test_endless_wait_is_ended_if_no_new_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_detection, "_STALL_SECONDS", 0.01)
    monkeypatch.setattr(idle_detection, "_LONG_STALL_SECONDS", 0.03)

    async def heartbeat() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def function(ctx: Context) -> Any:
        beat = asyncio.create_task(heartbeat())
        results = await asyncio.gather(*(ctx.step.sleep(name, 1000) for name in "ab"), ctx.step.run("c", str, "c"))
        beat.cancel()
        return results

    run = await engine_for(function).run(pick=named("c", "b", "a"))
    assert run.output == [None, None, "c"]


async def test_real_io_in_branches_is_waited_for() -> None:
    """Threads and sockets resolve their futures from outside: the call waits until every branch has found its step."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    async def function(ctx: Context) -> Any:
        port = ctx.event.data["port"]

        async def by_socket() -> Any:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"socket\n")
            line = (await reader.readline()).decode().strip()
            writer.close()
            return await ctx.step.run("socket", str, line)

        async def by_thread() -> Any:
            name = await asyncio.to_thread(lambda: threading.current_thread().name)
            assert name != threading.current_thread().name
            return await ctx.step.run("thread", str, "thread")

        async def by_executor() -> Any:
            done, _ = await asyncio.wait([asyncio.get_running_loop().run_in_executor(None, str, "executor")])
            return await ctx.step.run("executor", str, done.pop().result())

        async def by_clock() -> Any:
            await asyncio.sleep(0.005)
            return await ctx.step.run("clock", str, "clock")

        return await asyncio.gather(by_socket(), by_thread(), by_executor(), by_clock(), ctx.step.run("none", str))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        engine = engine_for(function)
        run = await engine.run(data={"port": server.sockets[0].getsockname()[1]})
    assert run.output == ["socket", "thread", "executor", "clock", ""]
    assert len(run.answers[0].ops) == 5


async def test_async_generators_and_context_managers() -> None:
    log = []

    @contextlib.asynccontextmanager
    async def resource(ctx: Context) -> AsyncIterator[str]:
        opened = await ctx.step.run("open", str, "opened")
        try:
            yield opened
        finally:
            log.append(await ctx.step.run("close", str, "closed"))

    class Later:
        async def __aenter__(self) -> None:
            await asyncio.sleep(0)

        async def __aexit__(self, *_: object) -> None:
            await asyncio.sleep(0.001)

    async def function(ctx: Context) -> Any:
        async def numbers() -> AsyncIterator[int]:
            for number in range(3):
                yield await ctx.step.run("number", int, number)

        async def squares() -> AsyncIterator[int]:
            async for number in numbers():
                yield await ctx.step.run("square", pow, number, 2)

        async with Later(), resource(ctx) as opened:
            found = [square async for square in squares()]
            both = await asyncio.gather(anext(squares()), anext(numbers()))
            return [opened, found, both]

    assert await complete(function) == ["opened", [0, 1, 4], [0, 0]]
    assert log == ["closed"]


async def test_context_variables_are_kept_in_branches() -> None:
    variable = contextvars.ContextVar[str]("variable", default="outside")

    async def function(ctx: Context) -> Any:
        variable.set("function")

        async def branch(name: str) -> Any:
            variable.set(name)
            await ctx.step.sleep(f"nap {name}", 1000)
            return await ctx.step.run(name, lambda: variable.get())

        return [*await asyncio.gather(branch("a"), branch("b")), variable.get()]

    assert await complete(function) == ["a", "b", "function"]
    assert variable.get() == "outside"


async def test_cancelling_a_parked_task_from_the_loop_itself() -> None:
    """A timer of the loop may cancel a task just as the call decides."""

    async def function(ctx: Context) -> Any:
        tasks = [asyncio.create_task(ctx.step.run(name, str, name)) for name in "abc"]
        for delay in range(12):
            _after(delay, tasks[delay % 2].cancel)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return [str(type(result).__name__) for result in results]

    assert await complete(function) == ["CancelledError", "CancelledError", "str"]


@pytest.mark.parametrize("delay", range(12))
async def test_cancelling_the_only_task_around_its_step(delay: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the call decides, before the task has heard of it, or later."""
    monkeypatch.setenv("DURABLY_STRICT_REPLAY", "0")
    tried = 0

    async def function(ctx: Context) -> Any:
        nonlocal tried
        tried += 1
        task = asyncio.current_task()
        assert task is not None
        if tried == 1:
            _after(delay, task.cancel)
        try:
            async with contextlib.AsyncExitStack():  # so that the step does not go ahead
                await ctx.step.run("a", asyncio.sleep, 0)
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            task.uncancel()
        return await ctx.step.run("b", str, "b")

    assert await complete(function) == "b"


async def test_cancelling_a_parked_task_as_its_memo_is_returned(caplog: pytest.LogCaptureFixture) -> None:
    delay = 0

    async def function(ctx: Context) -> Any:
        tasks = [asyncio.create_task(ctx.step.run(name, str, name)) for name in "ab"]
        _after(delay, tasks[0].cancel)
        return [type(result).__name__ for result in await asyncio.gather(*tasks, return_exceptions=True)]

    engine = engine_for(function)
    run = await engine.run()
    for step_id in ("a", "b"):
        hashed_id = hash_step_id(step_id)
        run.memos[hashed_id] = {"data": step_id}
    run.stack = list(run.memos)
    outcomes = set()
    for delay in range(25):  # noqa: B007
        outcomes.add(tuple((await engine.call(run)).json))
    assert outcomes == {("CancelledError", "str"), ("str", "str")}
    assert caplog.records == []


def _after(iterations: int, callback: Callable[[], Any]) -> None:
    loop = asyncio.get_running_loop()
    if iterations:
        loop.call_soon(_after, iterations - 1, callback)
    else:
        callback()


async def test_cancelling_a_handler_from_outside_ends_the_step_and_not_the_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DURABLY_STRICT_REPLAY", "0")

    async def function(ctx: Context) -> Any:
        task = asyncio.create_task(ctx.step.run("slow", asyncio.sleep, 60))
        asyncio.get_running_loop().call_later(0.02, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return await ctx.step.run("after", str, "after")

    assert await complete(function) == "after"


async def test_a_function_that_cancels_itself_has_failed() -> None:
    async def function(ctx: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    assert "cancelled by its own code" in (await fail(function))["message"]


async def test_step_of_a_cancelled_task_is_not_run() -> None:
    ran = []

    async def function(ctx: Context) -> Any:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ctx.step.run("not run", ran.append, 1)
        task.uncancel()
        return await ctx.step.run("run", str, "after")

    assert await complete(function) == "after"
    assert ran == []


async def test_tasks_without_the_runs_context_are_known_once_they_call_a_step() -> None:
    async def function(ctx: Context) -> Any:
        tasks = [
            asyncio.get_running_loop().create_task(ctx.step.run(name, str, name), context=contextvars.Context())
            for name in "ab"
        ]
        return await asyncio.gather(*tasks)

    assert await complete(function) == ["a", "b"]


async def test_tasks_of_a_handler_are_its_own() -> None:
    outlived = asyncio.Event()

    async def handler() -> str:
        async def background() -> None:
            await asyncio.sleep(0.01)
            outlived.set()

        tasks.append(asyncio.create_task(background()))
        return "".join(await asyncio.gather(asyncio.to_thread(str, "a"), asyncio.sleep(0, "b")))

    tasks: list[asyncio.Task[None]] = []

    async def function(ctx: Context) -> str:
        return await ctx.step.run("it", handler)

    assert await complete(function) == "ab"
    await asyncio.wait_for(outlived.wait(), 60)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
async def test_anyio_task_groups_and_primitives(order: tuple[str, str]) -> None:
    async def function(ctx: Context) -> Any:
        log: list[str] = []
        send, receive = anyio.create_memory_object_stream[str](1)
        lock = anyio.Lock()

        async def branch(name: str) -> None:
            log.append(await ctx.step.run(name, str, name))
            async with lock:
                await ctx.step.sleep(f"nap {name}", 1000)
            await send.send(name)

        async def collector() -> None:
            got = {await receive.receive(), await receive.receive()}
            log.append("".join(sorted(got)))

        async with send, receive, anyio.create_task_group() as group:
            group.start_soon(collector)
            for name in "ab":
                group.start_soon(branch, name)
        return log

    run = await engine_for(function).run(pick=named(*order))
    assert run.output == [*order, "ab"]


async def test_a_step_on_another_event_loop_is_refused_by_name() -> None:
    async def function(ctx: Context) -> Any:
        return await asyncio.to_thread(lambda: asyncio.run(ctx.step.run("it", str)))

    error = await fail(function)
    assert error["name"] == "FunctionConfigInvalidError"
    assert 'step "it" is awaited on another event loop' in error["message"]
