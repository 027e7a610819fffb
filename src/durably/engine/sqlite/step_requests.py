"""Requests of the steps ``fetch`` and ``ai.infer``, from the op to the memo."""

import asyncio
from typing import Any

from durably.engine.model.requests import OutboundClient, perform
from durably.engine.model.settings import Clock
from durably.protocol.engine_errors import EngineClosedError
from durably.protocol.text import get_logger

from .outbox import ScheduledRequest
from .transactions import runs
from .transactions.transact import Transactions
from .transactions.transaction import Transaction

_logger = get_logger("durably.engine")


class StepRequests:
    """Requests of steps that are due or under way, by run."""

    def __init__(self, outbound: OutboundClient, transactions: Transactions, clock: Clock) -> None:
        self._outbound = outbound
        self._transactions = transactions
        self._clock = clock
        self._opts: dict[int, dict[str, dict[str, Any]]] = {}
        self._tasks: dict[int, set[asyncio.Task[None]]] = {}

    def note(self, wanted: ScheduledRequest) -> None:
        """Keep the options of a request until it is due."""
        if wanted.request.opts is not None:
            self._opts.setdefault(wanted.run_key, {})[wanted.request.step_id] = wanted.request.opts

    def make(self, wanted: ScheduledRequest) -> None:
        opts = self._opts.get(wanted.run_key, {}).get(wanted.request.step_id)
        if opts is None:
            return
        self._clock.begin_work()
        task = asyncio.get_running_loop().create_task(self._make(wanted, opts))
        self._tasks.setdefault(wanted.run_key, set()).add(task)
        task.add_done_callback(lambda task: self._finished(wanted.run_key, task))

    def forget(self, run_key: int) -> None:
        """Cancel the requests of a run that has ended."""
        self._opts.pop(run_key, None)
        for task in self._tasks.get(run_key, ()):
            task.cancel()

    async def close(self) -> None:
        tasks = [task for tasks in self._tasks.values() for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._outbound.close()

    def _finished(self, run_key: int, task: asyncio.Task[None]) -> None:
        self._tasks[run_key].discard(task)
        if not self._tasks[run_key]:
            del self._tasks[run_key]
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its message may quote what was sent.
            _logger.error("the result of a step's request could not be stored: %s", type(error).__name__)
        self._clock.end_work()

    async def _make(self, wanted: ScheduledRequest, opts: dict[str, Any]) -> None:
        outcome = await perform(self._outbound, wanted.request, opts)

        def apply(transaction: Transaction) -> bool:
            """Apply the result of a request. Returns whether the request is repeated."""
            runs.apply(transaction, wanted.run_key, outcome)
            return any(
                isinstance(message, ScheduledRequest) and _is_same_step(wanted, message)
                for message in transaction.outbox
            )

        try:
            is_repeated = await self._transactions.transact_with_retry(apply)
        except EngineClosedError:
            return
        if not is_repeated:
            self._drop(wanted, opts)

    def _drop(self, wanted: ScheduledRequest, opts: dict[str, Any]) -> None:
        of_run = self._opts.get(wanted.run_key, {})
        if of_run.get(wanted.request.step_id) is opts:
            del of_run[wanted.request.step_id]
            if not of_run:
                del self._opts[wanted.run_key]


def _is_same_step(one: ScheduledRequest, other: ScheduledRequest) -> bool:
    return (one.run_key, one.request.step_id) == (other.run_key, other.request.step_id)
