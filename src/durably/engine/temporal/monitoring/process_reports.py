"""Reports of workflow code to the process that executes it.

Workflows have no other access to their process than a module. A replay reports nothing. Temporal may give a task of a
workflow to a second worker, whose first one did not answer: then a report is made twice.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from temporalio import workflow

T = TypeVar("T")


class ProcessReports(Generic[T]):
    """Reports of one kind.

    The functions that get them are known by the task queue of the workflows.
    """

    def __init__(self) -> None:
        self._listeners: dict[str, Callable[[T], None]] = {}

    def listen(self, queues: Iterable[str], listener: Callable[[T], None] | None) -> None:
        """Call ``listener`` with each report, on the running event loop.

        With ``None`` nothing is reported any more.
        """
        if listener is None:
            for queue in queues:
                self._listeners.pop(queue, None)
            return
        loop = asyncio.get_running_loop()

        def report(value: T) -> None:
            with contextlib.suppress(RuntimeError):  # The event loop is closed: the process stops.
                loop.call_soon_threadsafe(listener, value)

        self._listeners.update(dict.fromkeys(queues, report))

    @property
    def listener(self) -> Callable[[T], None] | None:
        """The function that gets reports of the running workflow.

        ``None`` during a replay. Workflow code.
        """
        listener = self._listeners.get(workflow.info().task_queue)
        return None if listener is None or workflow.unsafe.is_replaying() else listener
