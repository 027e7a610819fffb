"""Requests of the steps ``fetch`` and ``ai.infer``.

The process that got their options from the app makes them.
Options may hold credentials, so they are in no history: they stay in the memory of the process, whose own task queue
gets the requests. If they are lost with the process, the run asks the app again.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from temporalio import activity
from temporalio.exceptions import ApplicationError

from durably.engine.core.answers import Answer, ReportedOps
from durably.engine.core.inputs import MakeRequest
from durably.engine.core.ops import REQUESTS
from durably.engine.scheduling.requests.step_requests import Outbound, perform

from .call_messages import RequestInput, RequestResult
from .heartbeats import heartbeats
from .sizes import MAX_OUTPUT_BYTES, size_of

REQUEST = "durably.request"
_MAX_KEPT_BYTES = 128 * 1024 * 1024


class StepRequests:
    """The options of requests by run and step, and the activity that makes them.

    ``queue`` is the task queue of this process. The oldest options are dropped when all are too large: they are asked
    for again.
    """

    def __init__(self, queue: str, outbound: Outbound) -> None:
        self.queue = queue
        self._outbound = outbound
        self._opts: OrderedDict[tuple[str, str], tuple[dict[str, Any], int]] = OrderedDict()
        self._bytes = 0

    @property
    def activities(self) -> Sequence[Callable[..., Any]]:
        return [self.request]

    def keep(self, run_id: str, answer: Answer) -> tuple[Answer, bool]:
        """The answer without the options of its requests, and whether it has any."""
        if not isinstance(answer, ReportedOps) or all(op.op not in REQUESTS for op in answer.ops):
            return answer, False
        ops = []
        for op in answer.ops:
            if op.op in REQUESTS:
                self._put((run_id, op.id), op.opts or {})
                mode = {} if op.opts is None else {"parallelMode": op.opts.get("parallelMode")}
                op = msgspec.structs.replace(op, opts=mode if mode.get("parallelMode") else None)
            ops.append(op)
        return msgspec.structs.replace(answer, ops=ops), True

    @activity.defn(name=REQUEST)
    async def request(self, request: RequestInput) -> RequestResult:
        key = request.run_id, request.step_id
        kept = self._opts.get(key)
        if kept is None:
            raise ApplicationError("the options of the request are lost", type="RequestLostError", non_retryable=True)
        command = MakeRequest(request.step_id, request.name, request.op, request.generation, 0, 0, None)
        async with heartbeats():
            finished = await perform(self._outbound, command, kept[0], MAX_OUTPUT_BYTES)
        if not finished.is_retriable and self._opts.get(key) is kept:
            self._drop(key)
        return RequestResult(msgspec.Raw(finished.memo), finished.failed, finished.is_retriable)

    def _put(self, key: tuple[str, str], opts: dict[str, Any]) -> None:
        self._drop(key)
        size = size_of(opts)
        self._opts[key] = opts, size
        self._bytes += size
        while self._bytes > _MAX_KEPT_BYTES and len(self._opts) > 1:
            self._drop(next(iter(self._opts)))

    def _drop(self, key: tuple[str, str]) -> None:
        dropped = self._opts.pop(key, None)
        if dropped is not None:
            self._bytes -= dropped[1]
