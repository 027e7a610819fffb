"""Reports of workflow code to the process that executes it.

Workflows have no other access to their process than a module. A replay reports nothing. A task that the server refuses,
because an event came during it, or that it gives to a second process, is executed again, and reports again.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable

import msgspec
from temporalio import workflow

from durably.engine.scheduling.subscriptions import RunChange
from durably.engine.tracing import EndedRun


class RunReport(msgspec.Struct, frozen=True, gc=False):
    """A change of a run.

    ``key`` is the same in each report of it. The end of a run has ``ended``.
    """

    key: int
    change: RunChange
    ended: EndedRun | None = None


Listener = Callable[[list[RunReport]], None]

_listeners: dict[tuple[str, str], Listener] = {}
"""The functions that get reports, by the namespace and the task queue of the workflows."""


def listen(namespace: str, queues: Iterable[str], listener: Listener) -> Callable[[], None]:
    """Call ``listener`` with reports, on the running event loop.

    Returns a function that ends it.
    """
    loop = asyncio.get_running_loop()

    def report(reports: list[RunReport]) -> None:
        with contextlib.suppress(RuntimeError):  # The event loop is closed: the process stops.
            loop.call_soon_threadsafe(listener, reports)

    keys = [(namespace, queue) for queue in queues]
    _listeners.update(dict.fromkeys(keys, report))

    def end() -> None:
        for key in keys:
            if _listeners.get(key) is report:
                del _listeners[key]

    return end


def find_listener() -> Listener | None:
    """The function that gets reports of the running workflow.

    ``None`` during a replay. Workflow code.
    """
    info = workflow.info()
    listener = _listeners.get((info.namespace, info.task_queue))
    return None if listener is None or workflow.unsafe.is_replaying() else listener
