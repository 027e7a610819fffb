"""What asyncio's tasks wait for, and how they are ended with their call."""

import asyncio
import gc
import types
from collections.abc import Collection, Iterator
from contextvars import Context, ContextVar
from enum import Enum, auto
from typing import Any, Protocol

AnyTask = asyncio.Task[Any]
AnyFuture = asyncio.Future[Any]


class Tracker(Protocol):
    def track(self, task: AnyTask) -> None: ...


current_tracker: ContextVar[Tracker | None] = ContextVar("durably_tracker", default=None)
"""The call whose function the code is running in. Tasks inherit it, which is how a run's tasks are known."""


def install_task_factory(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop report to a call the tasks that its function creates; an existing factory is kept and chained."""
    inner = loop.get_task_factory()
    if getattr(inner, "tracks_durably", False):
        return

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
        task = asyncio.Task(coro, loop=loop, **kwargs) if inner is None else inner(loop, coro, **kwargs)
        context: Context | None = kwargs.get("context")
        tracker = current_tracker.get() if context is None else context.get(current_tracker)
        if tracker is not None and isinstance(task, asyncio.Task) and not task.done():
            tracker.track(task)
        return task

    factory.tracks_durably = True  # type: ignore[attr-defined]
    loop.set_task_factory(factory)


class Wait(Enum):
    """What a task is doing, as far as its run's steps are concerned."""

    READY = auto()
    """It runs, or will in one of the loop's next iterations."""
    TASKS = auto()
    """It waits for other tasks of the run, by gather, wait, a lock, a queue …"""
    OUTSIDE = auto()
    """It waits for something that no step of the run brings about: I/O, a timer, a thread."""


def waiter_of(task: AnyTask) -> AnyFuture | None:
    return getattr(task, "_fut_waiter", None)


def classify(task: AnyTask, run_tasks: Collection[AnyFuture]) -> Wait:
    waiter = waiter_of(task)
    if waiter is None:
        return Wait.READY
    wait = _classify_future(waiter, run_tasks)
    if wait is not Wait.OUTSIDE:
        return wait
    if (waited_for := _waited_for(task)) is not None:
        return _classify_all(waited_for, run_tasks)
    return Wait.TASKS if _waits_in_primitive(task) else Wait.OUTSIDE


def _classify_future(future: AnyFuture, run_tasks: Collection[AnyFuture]) -> Wait:
    if future.done():
        return Wait.READY
    if future in run_tasks:
        return Wait.TASKS
    if (children := _children(future)) is not None:
        return _classify_all(children, run_tasks)
    return Wait.TASKS if any(future in _resolved_by(task) for task in run_tasks) else Wait.OUTSIDE


def _classify_all(futures: Collection[AnyFuture], run_tasks: Collection[AnyFuture]) -> Wait:
    waits = {_classify_future(future, run_tasks) for future in futures if not future.done()}
    return Wait.OUTSIDE if Wait.OUTSIDE in waits else Wait.TASKS if waits else Wait.READY


def waits_only_for(task: AnyTask, others: Collection[AnyTask]) -> bool:
    """Whether all that a task waits for, by itself, ``gather``, ``wait`` or ``wait_for``, are some of the others."""
    waiter = waiter_of(task)
    if waiter is None:
        return False
    waited_for = _children(waiter) or _waited_for(task) or (waiter,)
    return all(future.done() or future in others for future in waited_for)


def awaited_by(task: AnyTask, waiter: AnyFuture) -> Iterator[AnyFuture]:
    """All futures that a task waits for by ``waiter``: it, what ``gather`` holds, what ``wait`` was given."""
    found: list[AnyFuture] = [waiter, *(_waited_for(task) or ())]
    while found:
        future = found.pop()
        yield future
        found += _children(future) or ()


def forwarded_by(future: AnyFuture) -> Iterator[tuple[Any, list[AnyFuture]]]:
    """The callbacks of a future, each with the futures that it resolves through its closure."""
    for callback, _context in getattr(future, "_callbacks", None) or ():
        yield callback, list(_resolved_by_callback(callback))


def _children(future: AnyFuture) -> Collection[AnyFuture] | None:
    return getattr(future, "_children", None)


_ASYNCIO_TASKS = "asyncio/tasks.py"
_WAITED_FOR = {"_wait": "fs", "wait_for": "fut", "_cancel_and_wait": "fut"}
"""Functions of ``asyncio.tasks`` that wait for futures by a future of their own, and where they keep those."""

_ASYNCIO_PRIMITIVES = ("asyncio/locks.py", "asyncio/queues.py", "asyncio/taskgroups.py")
_ANYIO = ("anyio/_backends/_asyncio.py", "anyio/_core/_synchronization.py")
_ANYIO_PRIMITIVES = ("__aexit__", "acquire", "wait")


def _waited_for(task: AnyTask) -> Collection[AnyFuture] | None:
    awaitable, filename, name = _innermost(task)
    if not filename.endswith(_ASYNCIO_TASKS) or name not in _WAITED_FOR:
        return None
    futures = locals_of(awaitable).get(_WAITED_FOR[name], ())
    return (futures,) if isinstance(futures, asyncio.Future) else futures


def _waits_in_primitive(task: AnyTask) -> bool:
    """Whether the innermost frame belongs to a primitive by which tasks wait for each other."""
    _, filename, name = _innermost(task)
    return filename.endswith(_ASYNCIO_PRIMITIVES) or (filename.endswith(_ANYIO) and name.startswith(_ANYIO_PRIMITIVES))


def _innermost(task: AnyTask) -> tuple[Any, str, str]:
    """What awaits the future, the file of its code, and its name."""
    innermost = None
    for awaitable in await_chain(task):
        innermost = awaitable
    code = code_of(innermost)
    return (innermost, code.co_filename.replace("\\", "/"), code.co_name) if code is not None else (None, "", "")


def _resolved_by(future: AnyFuture) -> Iterator[AnyFuture]:
    """Futures that this one's end resolves through a closure: what ``asyncio.shield`` returned, say."""
    for _, resolved in forwarded_by(future):
        yield from resolved


def _resolved_by_callback(callback: Any) -> Iterator[AnyFuture]:
    for cell in getattr(callback, "__closure__", None) or ():
        try:
            content = cell.cell_contents
        except ValueError:
            continue
        if isinstance(content, asyncio.Future):
            yield content


def await_chain(task: AnyTask) -> Iterator[Any]:
    """The coroutines of a suspended task, from the outermost to the one that awaits the future."""
    awaitable: Any = task.get_coro()
    while awaitable is not None:
        if code_of(awaitable) is not None:
            yield awaitable
        awaitable = _awaited_by(awaitable)


def _awaited_by(awaitable: Any) -> Any:
    for attribute in ("cr_await", "gi_yieldfrom", "ag_await"):
        if hasattr(awaitable, attribute):
            return getattr(awaitable, attribute)
    if type(awaitable).__name__ in ("async_generator_asend", "async_generator_athrow", "anext_awaitable"):
        # They hide what they drive; the garbage collector finds it.
        for referent in gc.get_referents(awaitable):
            if isinstance(referent, types.AsyncGeneratorType) or hasattr(referent, "cr_await"):
                return referent
    return None


def code_of(awaitable: Any) -> types.CodeType | None:
    for attribute in ("cr_code", "gi_code", "ag_code"):
        if (code := getattr(awaitable, attribute, None)) is not None:
            return code  # type: ignore[no-any-return]
    return None


def locals_of(awaitable: Any) -> dict[str, Any]:
    for attribute in ("cr_frame", "gi_frame", "ag_frame"):
        if (frame := getattr(awaitable, attribute, None)) is not None:
            return frame.f_locals  # type: ignore[no-any-return]
    return {}


_GRACE_SECONDS = 5.0
"""How long a cancelled task may clean up before it is cancelled again."""

_MAX_ROUNDS = 3


async def tear_down(tasks: Collection[AnyTask]) -> None:
    """Cancel the tasks and wait for them; ``tasks`` changes while they end and create others.

    A task that goes on all the same, since it swallows its cancellation, is left behind rather than waited for, and
    the loop's exception handler gets it.
    """
    overdue_rounds = 0
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.sleep(0)  # enough for a task that cleans nothing up, and cheaper than a wait with a timer
        overdue: set[AnyTask] = set()
        if not all(task.done() for task in running):
            _, overdue = await asyncio.wait(running, timeout=_GRACE_SECONDS)
        for task in running:
            if task not in overdue:
                _forget_error(task)
        overdue_rounds += bool(overdue)
        if overdue_rounds == _MAX_ROUNDS:
            for task in overdue:
                _report(task)
            return


def _forget_error(task: AnyTask) -> None:
    """The call has its outcome: asyncio need not log what the task raised.

    Nor need the task keep its cancellation, whose traceback holds the frames of the function, its memos, and
    through them the task: a cycle, which would stay in memory until the next garbage collection.
    """
    try:
        task.exception()
    except asyncio.CancelledError as error:
        error.__traceback__ = None


def _report(task: AnyTask) -> None:
    message = "a durable function's task goes on although its call has ended: it swallows asyncio.CancelledError"
    task.get_loop().call_exception_handler({"message": message, "task": task})
