"""The requests that the engine makes itself, for steps that ``fetch`` or ``infer``.

What such a request sends may hold credentials, so it is kept in memory alone, for as long as the step may be tried
again. After a restart the app is asked to report the step again.
"""

import asyncio
import logging
from typing import Any

import msgspec

from durably.engine.errors import EngineClosedError
from durably.engine.inputs import MakeRequest, RequestFinished
from durably.engine.turn import data_memo, error_memo
from durably.protocol.errors import ErrorData
from durably.protocol.limits import MAX_STEP_OUTPUT_BYTES
from durably.protocol.opcodes import Opcode

from .effects import RequestAt
from .journal import Journal
from .outbound import Outbound, OutboundError

_logger = logging.getLogger("durably.engine")


class Requests:
    def __init__(self, outbound: Outbound, journal: Journal) -> None:
        self._outbound = outbound
        self._journal = journal
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
            _logger.error("a step's request could not be carried out: %s", type(error).__name__)

    async def _make(self, wanted: RequestAt, opts: dict[str, Any]) -> None:
        request = wanted.request
        send = self._outbound.infer if request.op == Opcode.AI_GATEWAY else self._outbound.fetch
        try:
            outcome = _worked(request, msgspec.json.encode(await send(opts)))
        except OutboundError as error:
            outcome = _failed(request, error.name, error.message, is_retriable=error.retriable)
        try:
            await self._journal.enter_surely(lambda entry: entry.apply(wanted.run_key, outcome))
        except EngineClosedError:
            return


def _worked(request: MakeRequest, data: bytes) -> RequestFinished:
    if len(data) > MAX_STEP_OUTPUT_BYTES:
        message = f"step {request.name!r} got {len(data)} bytes; at most {MAX_STEP_OUTPUT_BYTES} are possible"
        return _failed(request, "StepOutputTooLargeError", message, is_retriable=False)
    return RequestFinished(request.step_id, request.generation, data_memo(data))


def _failed(request: MakeRequest, name: str, message: str, *, is_retriable: bool) -> RequestFinished:
    memo = error_memo(ErrorData(name=name, message=message))
    return RequestFinished(request.step_id, request.generation, memo, failed=True, is_retriable=is_retriable)
