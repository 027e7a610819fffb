"""Finding asyncio's own clocks around steps, to refuse them.

``asyncio.timeout``, ``wait_for`` and ``wait(timeout=)`` count from the moment the call began, and every
call starts again: around a step that sleeps for a day they would either never fire or fire each time.
A suspended task holds its clocks on its frames, where they are looked for when its steps are found.
"""

import asyncio
import dis
import gc
import inspect
import types
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any

from durably.protocol.errors import Error, ErrorCode

from .tasks import AnyTask, await_chain, code_of, locals_of, waits_only_for

_FUNCTIONS_WITH_CLOCKS: dict[types.CodeType | None, str] = {
    asyncio.wait_for.__code__: "asyncio.wait_for",
    asyncio.wait.__code__: "asyncio.wait(timeout=)",
}

_ASYNC_WITH = frozenset(("BEFORE_ASYNC_WITH", "LOAD_SPECIAL"))
"""How ``async with`` begins, up to Python 3.13 and since; the latter says for what."""
_ENTERED_BY_HAND = frozenset(("__aenter__", "enter_async_context"))


class ClockUnsupportedError(Error):
    """A step stands inside one of asyncio's clocks, which are not durable."""

    code = ErrorCode.CLOCK_UNSUPPORTED
    is_retriable = False
    include_stack = False


def find_clock(tasks: Iterable[AnyTask], ignored: Collection[AnyTask] = ()) -> str | None:
    """The name of a clock that is running around what the tasks wait for, or ``None``.

    Clocks of ``ignored`` tasks, and around those alone, are no concern of the steps.
    """
    for task in tasks:
        if ignored and (task in ignored or waits_only_for(task, ignored)):
            continue
        chain = list(await_chain(task))
        codes = [code_of(awaitable) for awaitable in chain]
        if (clock := _function_with_clock(chain, codes)) is not None:
            return clock
        if not all(map(_is_without_blocks, codes)) and _is_in_timeout(chain):
            return "asyncio.timeout"
        if _has_completion_deadline(task):
            return "asyncio.as_completed(timeout=)"
    return None


def may_surround_caller(outermost: types.CodeType) -> bool:
    """Whether a clock may be running around what the caller is about to do, in a task that began in ``outermost``."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not outermost:
        if not _is_without_blocks(frame.f_code):
            return True
        frame = frame.f_back
    return frame is None


def refusal(clock: str, step_ids: Iterable[str]) -> ClockUnsupportedError:
    steps = ", ".join(f'"{step_id}"' for step_id in step_ids)
    return ClockUnsupportedError(
        f"{clock} around step {steps}: asyncio's clocks start again at each call and are not durable. "
        "Use `async with ctx.group.timeout(id, duration)`, or wait_for_event(timeout=) for an event."
    )


def _function_with_clock(chain: Iterable[Any], codes: Iterable[types.CodeType | None]) -> str | None:
    for awaitable, code in zip(chain, codes, strict=True):
        name = _FUNCTIONS_WITH_CLOCKS.get(code)
        if name is not None and locals_of(awaitable).get("timeout") is not None:
            return name
    return None


@lru_cache(maxsize=4096)
def _is_without_blocks(code: types.CodeType | None) -> bool:
    """Whether code can hold no ``asyncio.timeout``, as it enters nothing: to look at its frame costs more."""
    if code is None or _ASYNC_WITH.isdisjoint(dis.opmap) or not _ENTERED_BY_HAND.isdisjoint(code.co_names):
        return False
    return not any(
        instruction.opname in _ASYNC_WITH and instruction.argrepr in ("", "__aenter__")
        for instruction in dis.get_instructions(code)
    )


def _is_in_timeout(chain: Sequence[Any]) -> bool:
    # The frames hold the method to leave the block by; from Python 3.14 on, the Timeout beside it.
    for referent in gc.get_referents(*chain):
        owner = referent.__self__ if type(referent) is types.MethodType else referent
        if isinstance(owner, asyncio.Timeout) and _is_running(owner):
            return True
    return False


def _is_running(timeout: asyncio.Timeout) -> bool:
    return timeout.when() is not None and "[active]" in repr(timeout)


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
