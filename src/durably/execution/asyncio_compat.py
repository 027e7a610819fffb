"""The parts of asyncio that have no public interface, and the mistakes that they show.

They give the future that a task waits for, and the clocks around it. The mistakes are a step that is not awaited, and
an asyncio clock around a step.

Checked with CPython 3.11.7, 3.12.1, 3.13.0 and 3.14.8. ``tests/execution/test_asyncio_compat.py`` tests each part, and
fails if a version of Python changes it. If a part is missing, a task counts as waiting for something outside of its
run: its steps are found after a second, and asyncio's clocks around steps may not be noticed.

Private are ``Task._fut_waiter``, ``Future._callbacks``, ``gather``'s ``_children`` and ``_discard_awaited_by``, the
names of local variables in ``asyncio.wait`` and ``wait_for``, ``_AsCompletedIterator``, ``sys._getframe`` and
``sys._current_frames``. No other module of Durably uses them.
"""

import asyncio
import gc
import inspect
import os.path
import sys
import types
import warnings
import weakref
from collections.abc import Collection, Coroutine, Iterable, Iterator
from enum import Enum, auto
from types import FrameType
from typing import Any, TypeVar

from durably.protocol.errors import Error, ErrorCode

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
    # In a primitive of asyncio, anyio or LangGraph, tasks wait for each other.
    _, filename, name = _innermost(task)
    is_primitive = filename.endswith(_PRIMITIVES) or (filename.endswith(_ANYIO) and name.startswith(_ANYIO_PRIMITIVES))
    return Wait.TASKS if is_primitive else Wait.OUTSIDE


def _classify_future(future: AnyFuture, run_tasks: Collection[AnyFuture]) -> Wait:
    if future.done():
        return Wait.READY
    if future in run_tasks:
        return Wait.TASKS
    if (children := _children(future)) is not None:
        return _classify_all(children, run_tasks)
    # Futures that a task's end resolves through a closure, such as the one that ``asyncio.shield`` returned.
    resolved = (each for task in run_tasks for _, futures in forwarded_by(task) for each in futures)
    return Wait.TASKS if any(each is future for each in resolved) else Wait.OUTSIDE


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


def is_note(callback: Any) -> bool:
    """Whether it is the callback by which ``gather`` notes, since Python 3.14.8, that the future is not awaited."""
    return getattr(getattr(callback, "func", None), "__name__", "") == "_discard_awaited_by"


def _children(future: AnyFuture) -> Collection[AnyFuture] | None:
    return getattr(future, "_children", None)


_ASYNCIO_TASKS = "asyncio/tasks.py"
_WAITED_FOR = {"_wait": "fs", "wait_for": "fut", "_cancel_and_wait": "fut"}
"""Functions of ``asyncio.tasks`` that wait through a future of their own. The variables have the awaited futures."""

_PRIMITIVES = (
    "asyncio/locks.py",
    "asyncio/queues.py",
    "asyncio/taskgroups.py",
    "langgraph/_internal/_queue.py",  # has a method of its own on asyncio's queue
)
_ANYIO = ("anyio/_backends/_asyncio.py", "anyio/_core/_synchronization.py")
_ANYIO_PRIMITIVES = ("__aexit__", "acquire", "wait")


def _waited_for(task: AnyTask) -> Collection[AnyFuture] | None:
    awaitable, filename, name = _innermost(task)
    if not filename.endswith(_ASYNCIO_TASKS) or name not in _WAITED_FOR:
        return None
    futures = _locals_of(awaitable).get(_WAITED_FOR[name], ())
    return (futures,) if isinstance(futures, asyncio.Future) else futures


def _innermost(task: AnyTask) -> tuple[Any, str, str]:
    """The awaitable that awaits the future, the file of its code, and its name."""
    innermost = None
    for awaitable in _await_chain(task):
        innermost = awaitable
    code = _code_of(innermost)
    return (innermost, code.co_filename.replace("\\", "/"), code.co_name) if code is not None else (None, "", "")


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
        owner = getattr(callback, "__self__", None)
        if type(owner).__qualname__ == "_AsCompletedIterator":  # since Python 3.13
            return getattr(owner, "_timeout_handle", None) is not None
        if getattr(callback, "__qualname__", "").startswith("as_completed."):
            cells = dict(zip(callback.__code__.co_freevars, callback.__closure__ or (), strict=True))
            return "timeout_handle" in cells and cells["timeout_handle"].cell_contents is not None
    return False


T = TypeVar("T")

_OWN_CODE = os.path.dirname(os.path.dirname(__file__)) + os.sep


class StepNotAwaitedError(Error):
    """An async function made a step or group of steps, but did not use it.

    It neither awaited it nor gave it to a task.
    """

    code = ErrorCode.STEP_NOT_AWAITED
    is_retriable = False
    include_stack = False


class ClockUnsupportedError(Error):
    """A step is inside one of asyncio's clocks, which are not durable."""

    code = ErrorCode.CLOCK_UNSUPPORTED
    is_retriable = False
    include_stack = False


# Python's own warning about such a coroutine has Durably's internal names, and comes before the error that names the
# step. The filter is for the coroutines that ``Unawaited`` has.
for _name in ("_result_of", "group"):
    warnings.filterwarnings("ignore", rf"coroutine 'AsyncCall\.{_name}\b.*' was never awaited", RuntimeWarning)

_Awaitable = tuple[str, types.CodeType, int, weakref.ref[Any]]
"""The name of a step or group, the code that made it, the index of the instruction, and the coroutine."""


class Unawaited:
    """The coroutines of one call's steps and groups that have not begun.

    ``awaitables`` has them by their ``id()``. A coroutine that begins removes itself. ``lost`` is a coroutine without
    references whose ``id()`` was reused.
    """

    __slots__ = ("awaitables", "lost")

    def __init__(self) -> None:
        self.awaitables: dict[int, _Awaitable] = {}
        self.lost: _Awaitable | None = None

    def add(self, name: str, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Add the coroutine of a step or group, and record where user code made it. Returns the coroutine."""
        frame = sys._getframe(3)
        while frame.f_code.co_filename.startswith(_OWN_CODE) and frame.f_back is not None:
            frame = frame.f_back
        number = id(coroutine)
        if number in self.awaitables:
            self.lost = self.lost or self.awaitables[number]
        self.awaitables[number] = (name, frame.f_code, frame.f_lasti, weakref.ref(coroutine))
        return coroutine

    def leave_to_task(self, coroutine: Any) -> None:
        """Remove a coroutine's awaitable when a task is created from the coroutine.

        The coroutine is the awaitable itself, or has it as an argument. The task may be cancelled before it begins,
        which is not an error.
        """
        if not self._leave(coroutine) and inspect.iscoroutine(coroutine):
            for value in inspect.getcoroutinelocals(coroutine).values():
                self._leave(value)

    def _leave(self, value: Any) -> bool:
        found = self.awaitables.get(id(value))
        if found is None or found[3]() is not value:
            return False
        del self.awaitables[id(value)]
        return True

    def dropped(self) -> StepNotAwaitedError | None:
        """The error of a coroutine that can no longer be awaited, as it has no references."""
        if self.lost is not None:
            return _not_awaited(self.lost)
        for awaitable in self.awaitables.values():
            if awaitable[3]() is None:
                return _not_awaited(awaitable)
        return None

    def any(self) -> StepNotAwaitedError | None:
        """The error of a coroutine that has not begun."""
        first = self.lost or next(iter(self.awaitables.values()), None)
        return None if first is None else _not_awaited(first)


def _not_awaited(awaitable: _Awaitable) -> StepNotAwaitedError:
    name, code, instruction, _ = awaitable
    line = next((line for start, end, line in code.co_lines() if start <= instruction < end), None)
    where = "" if line is None else f" (at {code.co_filename}:{line})"
    return StepNotAwaitedError(
        f"{name} was created but not awaited, so it did not run{where}: write `await` before it, "
        "or give it to asyncio.gather or a task that the function awaits"
    )


def find_clock(tasks: Iterable[AnyTask], ignored: Collection[AnyTask] = ()) -> str | None:
    """The name of an asyncio clock around what the tasks wait for, or ``None``.

    ``asyncio.timeout``, ``wait_for`` and ``wait(timeout=)`` count from the start of the call, and every call starts
    again: around a step that sleeps for a day they would either never fire or fire each time. Clocks around ``ignored``
    tasks alone do not concern the steps.
    """
    for task in tasks:
        if ignored and (task in ignored or waits_only_for(task, ignored)):
            continue
        if (clock := running_clock(task, may_be_timed=not isinstance(task, RunTask) or task.may_be_timed)) is not None:
            return clock
    return None


def clock_refusal(clock: str, step_ids: Iterable[str]) -> ClockUnsupportedError:
    steps = ", ".join(f'"{step_id}"' for step_id in step_ids)
    return ClockUnsupportedError(
        f"{clock} around step {steps}: asyncio's clocks start again at each call and are not durable. "
        "Use `async with ctx.group.timeout(id, duration)`, or wait_for_event(timeout=) for an event."
    )
