"""Requests of the steps fetch and infer, from their op to their memo."""

import asyncio
from typing import Any

import msgspec

from durably.engine.core.errors import EngineClosedError
from durably.engine.core.inputs import MakeRequest, RequestFinished
from durably.engine.core.transition import data_memo, error_memo
from durably.engine.scheduling import runs
from durably.engine.scheduling.outbox import RequestAt
from durably.engine.scheduling.transact import Transactions
from durably.engine.scheduling.transaction import Transaction
from durably.engine.settings import Clock
from durably.protocol.errors import ErrorData
from durably.protocol.limits import MAX_STEP_OUTPUT_BYTES
from durably.protocol.opcodes import Opcode
from durably.protocol.text import get_logger

from . import Outbound, OutboundError

_logger = get_logger("durably.engine")


class Requests:
    def __init__(self, outbound: Outbound, transactions: Transactions, clock: Clock) -> None:
        self._outbound = outbound
        self._transactions = transactions
        self._clock = clock
        self._opts: dict[int, dict[str, dict[str, Any]]] = {}
        self._tasks: dict[int, set[asyncio.Task[None]]] = {}

    def note(self, wanted: RequestAt) -> None:
        """Remember what a request is to send, until it is due."""
        if wanted.request.opts is not None:
            self._opts.setdefault(wanted.run_key, {})[wanted.request.step_id] = wanted.request.opts

    def make(self, wanted: RequestAt) -> None:
        opts = self._opts.get(wanted.run_key, {}).get(wanted.request.step_id)
        if opts is None:
            return
        self._clock.hold()
        task = asyncio.get_running_loop().create_task(self._make(wanted, opts))
        self._tasks.setdefault(wanted.run_key, set()).add(task)
        task.add_done_callback(lambda task: self._finished(wanted.run_key, task))

    def forget(self, run_key: int) -> None:
        """The run has ended."""
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
            # Its text may quote what was sent.
            _logger.error("what a step's request came to could not be stored: %s", type(error).__name__)
        self._clock.release()

    async def _make(self, wanted: RequestAt, opts: dict[str, Any]) -> None:
        outcome = await self._send(wanted.request, opts)

        def unit(transaction: Transaction) -> bool:
            """Whether it is to be made again."""
            runs.apply(transaction, wanted.run_key, outcome)
            return any(
                isinstance(message, RequestAt) and _is_same_step(wanted, message) for message in transaction.outbox
            )

        try:
            is_repeated = await self._transactions.transact_with_retry(unit)
        except EngineClosedError:
            return
        if not is_repeated:
            self._drop(wanted, opts)

    async def _send(self, request: MakeRequest, opts: dict[str, Any]) -> RequestFinished:
        send = self._outbound.infer if request.op == Opcode.AI_GATEWAY else self._outbound.fetch
        try:
            return _worked(request, msgspec.json.encode(await send(opts)))
        except OutboundError as error:
            return _failed(request, error.name, error.message, is_retriable=error.retriable)
        except Exception as error:
            # Its text, and its traceback, may quote what was sent.
            kind = type(error).__name__
            _logger.error("the request of step %r could not be made: %s", request.name, kind)
            message = f"the engine could not make the request of step {request.name!r}: {kind}"
            return _failed(request, "RequestFailedError", message, is_retriable=False)

    def _drop(self, wanted: RequestAt, opts: dict[str, Any]) -> None:
        of_run = self._opts.get(wanted.run_key, {})
        if of_run.get(wanted.request.step_id) is opts:
            del of_run[wanted.request.step_id]
            if not of_run:
                del self._opts[wanted.run_key]


def _is_same_step(one: RequestAt, other: RequestAt) -> bool:
    return (one.run_key, one.request.step_id) == (other.run_key, other.request.step_id)


def _worked(request: MakeRequest, data: bytes) -> RequestFinished:
    if len(data) > MAX_STEP_OUTPUT_BYTES:
        message = f"step {request.name!r} got {len(data)} bytes; at most {MAX_STEP_OUTPUT_BYTES} are possible"
        return _failed(request, "StepOutputTooLargeError", message, is_retriable=False)
    return RequestFinished(request.step_id, request.generation, data_memo(data))


def _failed(request: MakeRequest, name: str, message: str, *, is_retriable: bool) -> RequestFinished:
    memo = error_memo(ErrorData(name=name, message=message))
    return RequestFinished(request.step_id, request.generation, memo, failed=True, is_retriable=is_retriable)
