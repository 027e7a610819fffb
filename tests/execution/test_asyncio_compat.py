"""The private parts of asyncio that ``asyncio_compat`` uses: each is there, and means what it should."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from durably.execution.asyncio_compat import (
    RunTask,
    Wait,
    awaited_by,
    cancelling,
    classify,
    forwarded_by,
    is_note,
    is_wakeup,
    running_clock,
    stack_of_thread,
    waiter_of,
    waits_only_for,
)

Waits = Callable[["asyncio.Future[None]"], Awaitable[object]]


async def waits_directly(future: "asyncio.Future[None]") -> object:
    return await future


async def waits_by_gather(future: "asyncio.Future[None]") -> object:
    return await asyncio.gather(future)


async def waits_by_wait(future: "asyncio.Future[None]") -> object:
    return await asyncio.wait([future])


async def waits_by_wait_for(future: "asyncio.Future[None]") -> object:
    return await asyncio.wait_for(future, None)


async def suspended(coroutine: Awaitable[object]) -> "asyncio.Task[object]":
    task = asyncio.ensure_future(coroutine)
    for _ in range(3):
        await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("waits", [waits_directly, waits_by_gather, waits_by_wait, waits_by_wait_for])
async def test_awaited_future_of_a_task_is_found(waits: Waits) -> None:
    inner: asyncio.Task[None] = asyncio.create_task(asyncio.sleep(60))
    task = await suspended(waits(inner))
    waiter = waiter_of(task)
    assert waiter is not None
    assert inner in set(awaited_by(task, waiter))
    assert classify(task, {task, inner}) is Wait.TASKS
    assert classify(task, {task}) is Wait.OUTSIDE
    assert waits_only_for(task, {inner})
    assert not waits_only_for(task, set())
    inner.cancel()
    await asyncio.wait([task])


async def test_task_that_runs_is_ready() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    assert (waiter_of(task), classify(task, {task})) == (None, Wait.READY)
    await task


async def test_task_that_waits_for_a_lock_waits_for_tasks() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    task = await suspended(lock.acquire())
    assert classify(task, {task}) is Wait.TASKS
    lock.release()
    await task


async def test_callbacks_name_the_waiters_of_a_future() -> None:
    inner: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    outer = asyncio.shield(inner)
    waiting = await suspended(waits_directly(outer))
    assert [futures for _, futures in forwarded_by(inner) if futures] == [[outer]]
    assert [is_wakeup(callback) for callback, _ in forwarded_by(outer)].count(True) == 1
    inner.set_result(None)
    await waiting


async def test_a_gather_that_nothing_awaits_has_no_callback_of_users() -> None:
    gathered = asyncio.gather(asyncio.sleep(0))
    assert [callback for callback, _ in forwarded_by(gathered) if not is_note(callback)] == []
    await gathered


async def timed_by_timeout() -> None:
    async with asyncio.timeout(60):
        await asyncio.sleep(60)


async def timed_by_wait() -> None:
    await asyncio.wait([asyncio.ensure_future(asyncio.sleep(60))], timeout=60)


async def timed_by_as_completed() -> None:
    for first in asyncio.as_completed([inner_of_as_completed()], timeout=60):
        await first


def inner_of_as_completed() -> "asyncio.Task[None]":
    return asyncio.create_task(asyncio.sleep(60), name="inner")


@pytest.mark.parametrize(
    ("timed", "name"), [(timed_by_timeout, "asyncio.timeout"), (timed_by_wait, "asyncio.wait(timeout=)")]
)
async def test_clock_around_a_wait_is_found(timed: Callable[[], Awaitable[None]], name: str) -> None:
    task = await suspended(timed())
    assert running_clock(task, may_be_timed=True) == name
    await end(task)


async def test_deadline_of_as_completed_is_found() -> None:
    task = await suspended(timed_by_as_completed())
    (inner,) = (other for other in asyncio.all_tasks() if other.get_name() == "inner")
    assert running_clock(inner, may_be_timed=False) == "asyncio.as_completed(timeout=)"
    await end(task)
    await end(inner)


async def test_wait_without_a_timeout_sets_no_clock() -> None:
    task = await suspended(waits_by_wait(asyncio.get_running_loop().create_future()))
    assert running_clock(task, may_be_timed=True) is None
    await end(task)


@pytest.mark.parametrize(("function", "may_be_timed"), [(timed_by_timeout, True), (timed_by_wait, False)])
async def test_timeout_marks_a_task_of_a_run(function: Callable[[], Awaitable[None]], may_be_timed: bool) -> None:
    task: RunTask = RunTask(function())  # type: ignore[arg-type]
    for _ in range(3):
        await asyncio.sleep(0)
    assert (cancelling(task), task.may_be_timed) == (0, may_be_timed)
    await end(task)


async def test_stack_of_a_thread_is_read() -> None:
    frame = stack_of_thread(threading.get_ident())
    names = set()
    while frame is not None:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    assert "test_stack_of_a_thread_is_read" in names


async def end(task: "asyncio.Task[object] | asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])
