"""Step handlers of async functions: sync ones run in worker threads, async ones on the event loop."""

import asyncio
import functools
import logging
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

import pytest

from durably import Client, Context, ContextSync, Event, TriggerEvent
from durably.comm import CommHandler
from durably.io.worker_threads import WorkerThreads
from durably.testing import TestEngine

from ..execution.engine import Run, complete, engine_for, fail

PATIENCE_SECONDS = 60
name: ContextVar[str] = ContextVar("name", default="unset")


def is_on_loop() -> bool:
    return asyncio._get_running_loop() is not None


async def is_on_loop_async() -> bool:
    await asyncio.sleep(0)
    return is_on_loop()


class Sync:
    def __call__(self) -> bool:
        return is_on_loop()

    def method(self) -> bool:
        return is_on_loop()

    @classmethod
    def class_method(cls) -> bool:
        return is_on_loop()


class Async:
    async def __call__(self) -> bool:
        return is_on_loop()

    async def method(self) -> bool:
        return is_on_loop()


def wrapped(function: Callable[[], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
    @functools.wraps(function)
    def wrapper() -> Awaitable[bool]:
        assert not is_on_loop()  # what a sync decorator does before it returns the coroutine may block
        return function()

    return wrapper


SYNC = {
    "function": is_on_loop,
    "lambda": lambda: is_on_loop(),
    "method": Sync().method,
    "class method": Sync.class_method,
    "callable object": Sync(),
    "partial": functools.partial(is_on_loop),
    "decorated": functools.cache(is_on_loop),
}
ASYNC = {
    "function": is_on_loop_async,
    "lambda that returns a coroutine": lambda: is_on_loop_async(),
    "method": Async().method,
    "callable object": Async(),
    "partial": functools.partial(functools.partial(is_on_loop_async)),
    "partial of a callable object": functools.partial(Async()),
    "decorated by a sync wrapper": wrapped(is_on_loop_async),
}


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("kind", SYNC)
async def test_sync_handlers_run_in_worker_threads(kind: str, blocking: bool) -> None:
    async def function(ctx: Context) -> bool:
        return await ctx.step.run("where", SYNC[kind])  # type: ignore[no-any-return, operator]

    assert await complete(function, blocking=blocking) is False


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("kind", ASYNC)
async def test_async_handlers_run_on_the_event_loop(kind: str, blocking: bool) -> None:
    async def function(ctx: Context) -> bool:
        return await ctx.step.run("where", ASYNC[kind])

    assert await complete(function, blocking=blocking) is True


async def test_blocking_handlers_of_parallel_steps_run_at_the_same_time() -> None:
    """Several steps of one call, as the embedded engine makes them beyond its 32 requests."""
    both = threading.Barrier(2, timeout=PATIENCE_SECONDS)

    async def function(ctx: Context) -> list[Any]:
        return list(await asyncio.gather(*(ctx.step.run(f"step-{number}", both.wait) for number in range(2))))

    engine = engine_for(function)
    run = Run({"name": "test/event", "data": {}, "id": "01EVENT", "ts": 1_700_000_000_000})
    await engine.drive(run, steps=1)
    first, second = (op["id"] for op in run.answers[0].ops)
    answer = await engine.call(run, target=first, also=[second])
    assert sorted(op["data"] for op in answer.ops) == [0, 1]


async def test_context_variables_are_copied_into_the_thread() -> None:
    def read_and_set() -> str:
        before = name.get()
        name.set("set in the thread")
        return before

    async def function(ctx: Context) -> list[str]:
        name.set("Grace")
        return [await ctx.step.run("read", read_and_set), name.get()]

    assert await complete(function) == ["Grace", "Grace"]


def raise_error(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (StopIteration(3), "StopIteration"),
        (asyncio.CancelledError(), "CancelledError"),
        (SystemExit(2), "sys.exit(2) was called"),
    ],
)
async def test_errors_that_asyncio_treats_specially_fail_the_step(raised: BaseException, message: str) -> None:
    async def function(ctx: Context) -> None:
        await ctx.step.run("bad", raise_error, raised)

    error = await fail(function, max_attempts=1)
    assert message in error["message"] + error["stack"]


# -- pools


async def test_one_thread_is_enough_for_functions_and_their_parallel_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INNGEST_THREAD_POOL_MAX_WORKERS", "1")

    async def function(ctx: Context) -> list[Any]:
        return list(await asyncio.gather(*(ctx.step.run(f"step-{number}", is_on_loop) for number in range(5))))

    def sync_function(ctx: ContextSync) -> bool:
        return ctx.step.run("step", is_on_loop)

    engine = engine_for(function, sync_function)
    async with asyncio.timeout(PATIENCE_SECONDS):
        runs = await asyncio.gather(*(engine.run(served) for served in engine.functions for _ in range(3)))
    assert [run.status for run in runs] == ["Completed"] * 6


async def test_without_a_pool_sync_handlers_run_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INNGEST_THREAD_POOL_MAX_WORKERS", "0")

    async def function(ctx: Context) -> bool:
        return await ctx.step.run("where", is_on_loop)

    assert await complete(function) is True


async def test_handler_in_a_thread_has_the_request_context() -> None:
    threads: list[tuple[str, int]] = []

    @contextmanager
    def request_context() -> Iterator[None]:
        threads.append(("begin", threading.get_ident()))
        yield
        threads.append(("end", threading.get_ident()))

    async def function(ctx: Context) -> None:
        await ctx.step.run("where", lambda: threads.append(("handler", threading.get_ident())))

    engine = engine_for(function)
    engine.handler = CommHandler(
        client=engine.client, framework="test", functions=engine.functions, thread_context=request_context
    )
    assert (await engine.run()).status == "Completed"
    assert [what for what, _ in threads] == ["begin", "handler", "end"]
    assert len({thread for _, thread in threads} - {threading.get_ident()}) == 1


@pytest.mark.parametrize("size", [None, 1])
async def test_an_executor_that_is_shut_down_refuses_each_job(size: int | None) -> None:
    executor = ThreadPoolExecutor(1)
    threads = WorkerThreads(executor, size=size)
    executor.shutdown()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            await asyncio.wait_for(threads.run(is_on_loop), PATIENCE_SECONDS)


def test_several_event_loops_share_the_threads_while_jobs_are_cancelled() -> None:
    """No job is lost, and none runs that was taken back."""
    ran: list[tuple[int, int]] = []  # appending is atomic
    begun: list[tuple[int, int]] = []

    async def use(threads: WorkerThreads, loop: int) -> list[tuple[int, int]]:
        jobs = {
            (loop, number): asyncio.create_task(
                threads.run(
                    functools.partial(ran.append, (loop, number)),
                    on_abandoned=functools.partial(begun.append, (loop, number)),
                )
            )
            for number in range(300)
        }
        await asyncio.sleep(0)
        for _, number in list(jobs)[::3]:
            jobs[loop, number].cancel()
        await asyncio.wait(jobs.values(), timeout=PATIENCE_SECONDS)
        assert all(job.done() for job in jobs.values())
        return [key for key, job in jobs.items() if not job.cancelled()]

    with ThreadPoolExecutor(2) as executor, ThreadPoolExecutor(3) as loops:
        threads = WorkerThreads(executor, size=2)
        uses = [loops.submit(asyncio.run, use(threads, loop)) for loop in range(3)]
        finished = [key for use_of_loop in uses for key in use_of_loop.result(PATIENCE_SECONDS)]
    assert sorted(ran) == sorted(finished + begun)


def test_the_exit_of_the_interpreter_waits_for_the_jobs() -> None:
    script = """
import asyncio, atexit, threading
from concurrent.futures import ThreadPoolExecutor
from durably.io.worker_threads import WorkerThreads

began, exiting = threading.Event(), threading.Event()

def first():
    began.set()
    assert exiting.wait(60)
    print("first job", flush=True)

async def main():
    for job in (first, lambda: print("second job", flush=True)):
        task = asyncio.ensure_future(threads.run(job))
        tasks.append(task)
    await asyncio.to_thread(began.wait, 60)

atexit.register(print, "application's exit handler", flush=True)
threading._register_atexit(exiting.set)
threads, tasks = WorkerThreads(ThreadPoolExecutor(1), size=1), []
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.stdout.splitlines() == ["first job", "second job", "application's exit handler"], done.stderr


# -- cancellation


class Held:
    """A handler that runs until it is released."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.released = threading.Event()
        self.ended = threading.Event()

    def __call__(self) -> None:
        self.began.set()
        assert self.released.wait(PATIENCE_SECONDS)
        self.ended.set()


async def test_a_running_handler_is_left_to_itself_when_its_call_is_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    held = Held()

    async def function(ctx: Context) -> None:
        await ctx.step.run("slow", held)

    with caplog.at_level(logging.WARNING, "durably"):
        call = asyncio.create_task(engine_for(function).run())
        assert await asyncio.to_thread(held.began.wait, PATIENCE_SECONDS)
        call.cancel()
        await asyncio.wait([call])
    assert call.cancelled()
    assert not held.ended.is_set()
    held.released.set()
    assert await asyncio.to_thread(held.ended.wait, PATIENCE_SECONDS)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith('step "slow" of function "app-function" (run 01RUN) was cancelled while its handler ran')


@pytest.mark.parametrize("size", [None, 1])
async def test_work_that_waits_for_a_thread_never_begins_once_it_is_cancelled(size: int | None) -> None:
    held, called, abandoned = Held(), list[int](), list[int]()
    pool = ThreadPoolExecutor(1)
    threads = WorkerThreads(pool, size=size)
    running = asyncio.create_task(threads.run(held, on_abandoned=lambda: abandoned.append(1)))
    await asyncio.to_thread(held.began.wait, PATIENCE_SECONDS)
    waiting = asyncio.create_task(threads.run(lambda: called.append(1), on_abandoned=lambda: abandoned.append(2)))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    held.released.set()
    await running
    await asyncio.to_thread(pool.shutdown)
    assert not called
    assert not abandoned


# -- in tests of users


@pytest.mark.parametrize("attempt", range(3))
async def test_in_a_test_engine_parallel_handlers_run_one_after_another(attempt: int) -> None:
    client = Client(app_id="app", is_production=False)
    order: list[int] = []

    @client.create_function(fn_id="f", trigger=TriggerEvent(event="e"))
    async def function(ctx: Context) -> None:
        await asyncio.gather(*(ctx.step.run(f"step-{number}", order.append, number) for number in range(40)))

    async with TestEngine(client, [function]) as engine:
        run = await engine.send(Event(name="e"))
        await run.wait()
        run.assert_completed()
        stored = list(run.steps)
    assert order == sorted(order)
    assert stored == [f"step-{number}" for number in range(40)]


def test_in_a_sync_test_engine_sync_handlers_run_in_the_tests_own_thread() -> None:
    client = Client(app_id="app", is_production=False)
    threads: dict[str, int] = {}

    @client.create_function(fn_id="f", trigger=TriggerEvent(event="e"))
    async def function(ctx: Context) -> None:
        threads["function"] = threading.get_ident()
        threads["handler"] = await ctx.step.run("where", threading.get_ident)

    with TestEngine(client, [function]).sync() as engine:
        engine.send(Event(name="e")).wait().assert_completed()
    assert threads["handler"] == threading.get_ident() != threads["function"]
