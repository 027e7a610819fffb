"""The workers of a process.

They run until they are stopped, and are made again if one of them fails.
"""

import asyncio
import contextlib
import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from temporalio.worker import Worker

from durably.protocol.text import get_logger
from durably.temporal.compat import release_task_queue

_RETRY_SECONDS = 1.0
_RETURN_SECONDS = 5.0

_logger = get_logger("durably.engine")


class AnyWorker(Protocol):
    """A worker of temporalio, or several that act as one."""

    async def run(self) -> None: ...

    async def shutdown(self) -> None: ...

    async def __aenter__(self) -> Any: ...

    async def __aexit__(self, *_: Any) -> None: ...


class Slots(Protocol):
    """See ``CallSlots``."""

    def close(self) -> None: ...

    async def wait_until_unused(self) -> None: ...

    async def wait_until_polls_are_quiet(self) -> None: ...


class ProcessWorkers(list[AnyWorker]):
    """Workers, and the slots of the calls that they make.

    The first worker executes what workflows of the others ask for, such as the registration of a wait.
    """

    def __init__(self, workers: Iterable[AnyWorker], slots: Sequence[Slots]) -> None:
        super().__init__(workers)
        self.slots = slots


class WorkerGroup:
    """Runs the workers of a process.

    A stop gives calls ``close_grace`` to end, and a little time to return the steps of calls that have not.
    """

    def __init__(self, make: Callable[[], ProcessWorkers], close_grace: dt.timedelta) -> None:
        self._make = make
        self._grace_seconds = close_grace.total_seconds() + _RETURN_SECONDS
        self._workers = ProcessWorkers([], [])
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False

    def start(self) -> None:
        self._is_stopping = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop_calls(self) -> None:
        """Take no more calls, and wait for those under way.

        Workflows continue, so that the calls can hand over steps.
        """
        self._is_stopping = True
        for slots in self._workers.slots:
            slots.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace_seconds):
                await asyncio.gather(*(slots.wait_until_unused() for slots in self._workers.slots))

    async def stop(self) -> None:
        """``stop_calls``, then stop the execution of workflows."""
        await self.stop_calls()
        if self._task is not None:
            await asyncio.gather(*(slots.wait_until_polls_are_quiet() for slots in self._workers.slots))
            # Runs end what they have begun, for which this process may be the only one with the first worker.
            await asyncio.gather(*(worker.shutdown() for worker in self._workers[1:]))
            await asyncio.gather(*(worker.shutdown() for worker in self._workers[:1]))
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        known = ""
        while True:
            try:
                await self._run_once()
                return
            except Exception as error:
                reason = str(error).partition("\n\nStack backtrace:")[0]
                if reason != known:
                    _logger.error("the workers of this process have stopped, and start again: %s", reason)
                known = reason
            if self._is_stopping:
                return
            await asyncio.sleep(_RETRY_SECONDS)

    async def _run_once(self) -> None:
        self._workers = self._make()
        running = [asyncio.create_task(worker.run()) for worker in self._workers]
        try:
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for worker in self._workers:
                if isinstance(worker, Worker):
                    release_task_queue(worker)
            self._workers = ProcessWorkers([], [])
