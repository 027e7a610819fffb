"""Taking down the tasks of a call that has ended."""

import asyncio
from collections.abc import Collection

from .tasks import AnyTask

_GRACE_SECONDS = 5.0
"""How long a cancelled task may clean up before it is cancelled again."""

_MAX_ROUNDS = 3


async def tear_down(tasks: Collection[AnyTask]) -> None:
    """Cancel the tasks and wait for them; ``tasks`` may change meanwhile, as they end and create others.

    A task that goes on all the same, since it swallows its cancellation, is left behind rather than waited for, and
    the loop's exception handler is told.
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
