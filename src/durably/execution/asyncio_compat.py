"""The parts of asyncio that have no public interface.

They give the future that a task waits for, and the clocks around it.

Checked with CPython 3.11.7, 3.12.1 and 3.13.0. ``tests/execution/test_asyncio_compat.py`` tests each part, and fails if
a version of Python changes it. If a part is missing, a task counts as waiting for something outside of its run: its
steps are found after a second, and asyncio's clocks around steps may not be noticed.

Private are ``Task._fut_waiter``, ``Future._callbacks``, ``gather``'s ``_children``, the names of local variables in
``asyncio.wait`` and ``wait_for``, ``_AsCompletedIterator`` and ``sys._current_frames``. No other module of Durably uses
them.
"""

import asyncio
import gc
import inspect
import sys
import types
from collections.abc import Collection, Iterator
from enum import Enum, auto
from types import FrameType
from typing import Any

AnyTask = asyncio.Task[Any]
AnyFuture = asyncio.Future[Any]


class RunTask(asyncio.Task[Any]):
    """A task of a run.

    ``may_be_timed``: it may have entered ``asyncio.timeout``, which calls the task's ``cancelling``. Other callers of
    ``cancelling`` set it too. The cost is one search for a clock.
    """

    may_be_timed = False

    def cancelling(self) -> int:
        self.may_be_timed = True
        return super().cancelling()


def cancelling(task: AnyTask) -> int:
    """``task.cancelling()``, which does not mark a ``RunTask``."""
    return asyncio.Task.cancelling(task) if isinstance(task, RunTask) else task.cancelling()


def stack_of_thread(thread_id: int) -> FrameType | None:
    """The frame that a thread is executing."""
    return sys._current_frames().get(thread_id)


# -- what a task waits for


class Wait(Enum):
    """The state of a task with respect to its run's steps."""

    READY = auto()
    """It runs, or will run in one of the loop's next iterations."""
    TASKS = auto()
    """It waits for other tasks of the run, through gather, wait, a lock, a queue …"""
    OUTSIDE = auto()
    """It waits for something that no step of the run causes: I/O, a timer, a thread."""


def waiter_of(task: AnyTask) -> AnyFuture | None:
    """The future that a task is suspended on."""
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
    """Whether a task waits only for some of the others.

    It waits directly, or through ``gather``, ``wait`` or ``wait_for``.
    """
    waiter = waiter_of(task)
    if waiter is None:
        return False
    waited_for = _children(waiter) or _waited_for(task) or (waiter,)
    return all(future.done() or future in others for future in waited_for)


def awaited_by(task: AnyTask, waiter: AnyFuture) -> Iterator[AnyFuture]:
    """All futures that a task waits for through ``waiter``.

    They are ``waiter``, the futures of ``gather``, and the futures given to ``wait``.
    """
    found: list[AnyFuture] = [waiter, *(_waited_for(task) or ())]
    while found:
        future = found.pop()
        yield future
        found += _children(future) or ()


def forwarded_by(future: AnyFuture) -> Iterator[tuple[Any, list[AnyFuture]]]:
    """The callbacks of a future, each with the futures that it resolves.

    A callback resolves futures through its closure.
    """
    for callback, _context in getattr(future, "_callbacks", None) or ():
        yield callback, list(_resolved_by_callback(callback))


def is_wakeup(callback: Any) -> bool:
    """Whether a future's callback wakes a task that awaits the future."""
    return "wakeup" in getattr(callback, "__name__", "") or "TaskWakeup" in type(callback).__name__


def _children(future: AnyFuture) -> Collection[AnyFuture] | None:
    return getattr(future, "_children", None)


_ASYNCIO_TASKS = "asyncio/tasks.py"
_WAITED_FOR = {"_wait": "fs", "wait_for": "fut", "_cancel_and_wait": "fut"}
"""Functions of ``asyncio.tasks`` that wait through a future of their own. The variables have the awaited futures."""

_ASYNCIO_PRIMITIVES = ("asyncio/locks.py", "asyncio/queues.py", "asyncio/taskgroups.py")
_ANYIO = ("anyio/_backends/_asyncio.py", "anyio/_core/_synchronization.py")
_ANYIO_PRIMITIVES = ("__aexit__", "acquire", "wait")


def _waited_for(task: AnyTask) -> Collection[AnyFuture] | None:
    awaitable, filename, name = _innermost(task)
    if not filename.endswith(_ASYNCIO_TASKS) or name not in _WAITED_FOR:
        return None
    futures = _locals_of(awaitable).get(_WAITED_FOR[name], ())
    return (futures,) if isinstance(futures, asyncio.Future) else futures


def _waits_in_primitive(task: AnyTask) -> bool:
    """Whether the innermost frame belongs to a primitive of asyncio or anyio.

    Tasks wait for each other through these primitives.
    """
    _, filename, name = _innermost(task)
    return filename.endswith(_ASYNCIO_PRIMITIVES) or (filename.endswith(_ANYIO) and name.startswith(_ANYIO_PRIMITIVES))


def _innermost(task: AnyTask) -> tuple[Any, str, str]:
    """The awaitable that awaits the future, the file of its code, and its name."""
    innermost = None
    for awaitable in _await_chain(task):
        innermost = awaitable
    code = _code_of(innermost)
    return (innermost, code.co_filename.replace("\\", "/"), code.co_name) if code is not None else (None, "", "")


def _resolved_by(future: AnyFuture) -> Iterator[AnyFuture]:
    """Futures that this future's end resolves through a closure.

    An example is the future that ``asyncio.shield`` returned.
    """
    for _, resolved in forwarded_by(future):
        yield from resolved


def _resolved_by_callback(callback: Any) -> Iterator[AnyFuture]:
    for cell in getattr(callback, "__closure__", None) or ():
        try:
            content = cell.cell_contents
        except ValueError:
            continue
        # A task is resolved only by its own coroutine. Since Python 3.14 a callback of ``shield`` has the task that
        # made it.
        if isinstance(content, asyncio.Future) and not isinstance(content, asyncio.Task):
            yield content


def _await_chain(task: AnyTask) -> Iterator[Any]:
    """The coroutines of a suspended task, outermost first.

    The last one awaits the future.
    """
    awaitable: Any = task.get_coro()
    while awaitable is not None:
        if _code_of(awaitable) is not None:
            yield awaitable
        awaitable = _awaited_by(awaitable)


def _awaited_by(awaitable: Any) -> Any:
    for attribute in ("cr_await", "gi_yieldfrom", "ag_await"):
        if hasattr(awaitable, attribute):
            return getattr(awaitable, attribute)
    if type(awaitable).__name__ in ("async_generator_asend", "async_generator_athrow", "anext_awaitable"):
        # These wrappers expose no attribute for the inner awaitable, so use ``gc.get_referents``.
        for referent in gc.get_referents(awaitable):
            if isinstance(referent, types.AsyncGeneratorType) or hasattr(referent, "cr_await"):
                return referent
    return None


def _code_of(awaitable: Any) -> types.CodeType | None:
    for attribute in ("cr_code", "gi_code", "ag_code"):
        if (code := getattr(awaitable, attribute, None)) is not None:
            return code  # type: ignore[no-any-return]
    return None


def _locals_of(awaitable: Any) -> dict[str, Any]:
    if inspect.iscoroutine(awaitable):
        return inspect.getcoroutinelocals(awaitable)
    return inspect.getgeneratorlocals(awaitable) if inspect.isgenerator(awaitable) else {}


# -- clocks

_FUNCTIONS_WITH_CLOCKS: dict[types.CodeType | None, str] = {
    asyncio.wait_for.__code__: "asyncio.wait_for",
    asyncio.wait.__code__: "asyncio.wait(timeout=)",
}


def running_clock(task: AnyTask, *, may_be_timed: bool) -> str | None:
    """The name of a clock around what a suspended task waits for, or ``None``.

    ``asyncio.timeout`` is looked for in tasks that ``may_be_timed``: their coroutines hold the method that leaves its
    block, and from Python 3.14 on the ``Timeout`` next to it.
    """
    chain = list(_await_chain(task))
    for awaitable in chain:
        name = _FUNCTIONS_WITH_CLOCKS.get(_code_of(awaitable))
        if name is not None and _locals_of(awaitable).get("timeout") is not None:
            return name
    if may_be_timed:
        for referent in gc.get_referents(*chain):
            owner = referent.__self__ if type(referent) is types.MethodType else referent
            if isinstance(owner, asyncio.Timeout) and owner.when() is not None and "[active]" in repr(owner):
                return "asyncio.timeout"
    return "asyncio.as_completed(timeout=)" if _has_completion_deadline(task) else None


def _has_completion_deadline(task: AnyTask) -> bool:
    for callback, _context in getattr(task, "_callbacks", None) or ():
        owner = getattr(callback, "__self__", None)  # since Python 3.13, an iterator
        if owner is not None:
            if type(owner).__qualname__ == "_AsCompletedIterator" and getattr(owner, "_timeout_handle", None):
                return True
            continue
        code = getattr(callback, "__code__", None)
        if code is not None and code.co_qualname.startswith("as_completed."):
            cells = dict(zip(code.co_freevars, callback.__closure__ or (), strict=True))
            if "timeout_handle" in cells and cells["timeout_handle"].cell_contents is not None:
                return True
    return False
