"""The workers of a process.

They run until they are stopped, and are made again if one of them fails.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from temporalio.worker import Worker

from durably.protocol.text import get_logger

_RETRY_SECONDS = 1.0

_logger = get_logger("durably.engine")


class WorkerGroup:
    """Runs workers of temporalio: the first executes workflows, the others make calls."""

    def __init__(self, make: Callable[[], Sequence[Worker]]) -> None:
        self._make = make
        self._workers: Sequence[Worker] = ()
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
        await asyncio.gather(*(worker.shutdown() for worker in self._workers[1:]))

    async def stop(self) -> None:
        """``stop_calls``, then stop the execution of workflows."""
        await self.stop_calls()
        if self._task is not None:
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
                if str(error) != known:
                    _logger.error("the workers of this process have stopped, and start again: %s", error)
                known = str(error)
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
            self._workers = ()
