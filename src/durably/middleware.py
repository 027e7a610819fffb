"""Middleware: user code around calls, steps and sent events (spec §6).

For each call the hooks of all middleware run once, client's before function's, in this order:
``transform_input``, ``after_memoization``, ``before_execution``, ``after_execution``, ``transform_output``,
``before_response``. Hooks named *after*, and ``transform_output``, run in reverse order of registration.
``before_step`` and ``after_step`` run around each executed step, ``before_send_events`` and
``after_send_events`` around each sending of events.

With checkpointing a call executes several steps: ``before_execution``, ``after_execution`` and ``transform_output``
then run for each of them, and once more for the function's end. The function goes on with what its step returned, as
JSON holds it; what ``transform_output`` made of it is stored, and ``transform_input`` must restore it at later calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from durably.execution import StepInfo, StepMemos, StepReport
from durably.protocol.events import Event
from durably.protocol.opcodes import Opcode

if TYPE_CHECKING:
    from durably.client import Client
    from durably.context import Context, ContextSync
    from durably.functions import Function
    from durably.transport import IO


@dataclass
class SendEventsResult:
    """What sending events came to: ``ids`` of those accepted, ``error`` where not all were."""

    error: str | None = None
    ids: list[str] = field(default_factory=list)


@dataclass
class TransformOutputStepInfo:
    """The step of a ``TransformOutputResult``; changes to it have no effect."""

    id: str
    op: Opcode
    opts: Mapping[str, Any] | None = None


@dataclass
class TransformOutputResult:
    """What a function or step returned or raised. ``output`` and ``error`` may be replaced.

    ``step`` is ``None`` where the function itself ended.
    """

    error: Exception | None
    output: Any
    step: TransformOutputStepInfo | None

    def has_output(self) -> bool:
        return self.output is not msgspec.UNSET


class Middleware:
    """Base of async middleware. One is made for each call and each sending, with the framework's request."""

    def __init__(self, client: Client, raw_request: object) -> None:
        self.client = client
        self.raw_request = raw_request

    async def transform_input(self, ctx: Context | ContextSync, function: Function[Any], steps: StepMemos) -> None:
        """Before the function runs. Context and memos may be changed."""

    async def after_memoization(self) -> None:
        """All memos are returned; at once where there are none."""

    async def before_execution(self) -> None:
        """Before new code runs."""

    async def after_execution(self) -> None:
        """After new code ran, whether it succeeded or not."""

    async def transform_output(self, result: TransformOutputResult) -> None:
        """A function or step returned or raised; ``result`` may be changed."""

    async def before_response(self) -> None:
        """Before the answer goes to the engine."""

    async def before_step(self, step: StepInfo) -> None:
        """Before a step's handler runs."""

    async def after_step(self, step: StepInfo, result: TransformOutputResult) -> None:
        """After a step's handler ran; changes to ``result`` belong into ``transform_output``."""

    async def before_send_events(self, events: list[Event]) -> None:
        """Before events are sent; they may be changed."""

    async def after_send_events(self, result: SendEventsResult) -> None:
        """After events were sent, or could not be."""


class MiddlewareSync:
    """Base of sync middleware, for functions of both kinds. The hooks are those of ``Middleware``."""

    def __init__(self, client: Client, raw_request: object) -> None:
        self.client = client
        self.raw_request = raw_request

    def transform_input(self, ctx: Context | ContextSync, function: Function[Any], steps: StepMemos) -> None:
        """See ``Middleware.transform_input``."""

    def after_memoization(self) -> None:
        """See ``Middleware.after_memoization``."""

    def before_execution(self) -> None:
        """See ``Middleware.before_execution``."""

    def after_execution(self) -> None:
        """See ``Middleware.after_execution``."""

    def transform_output(self, result: TransformOutputResult) -> None:
        """See ``Middleware.transform_output``."""

    def before_response(self) -> None:
        """See ``Middleware.before_response``."""

    def before_step(self, step: StepInfo) -> None:
        """See ``Middleware.before_step``."""

    def after_step(self, step: StepInfo, result: TransformOutputResult) -> None:
        """See ``Middleware.after_step``."""

    def before_send_events(self, events: list[Event]) -> None:
        """See ``Middleware.before_send_events``."""

    def after_send_events(self, result: SendEventsResult) -> None:
        """See ``Middleware.after_send_events``."""


MiddlewareFactory = Callable[["Client", object], Middleware | MiddlewareSync]
"""A middleware class, or anything that makes a middleware of the client and the framework's request."""

_REVERSED = {"after_execution", "transform_output", "after_step", "after_send_events"}


class MiddlewareStack:
    """The middleware of one call or one sending, told by ``execution`` of its progress (``execution.Hooks``)."""

    def __init__(self, factories: Sequence[MiddlewareFactory], client: Client, raw_request: object, io: IO) -> None:
        self._middleware = [factory(client, raw_request) for factory in factories]
        self._io = io
        self._is_executing = False

    def __bool__(self) -> bool:
        return bool(self._middleware)

    async def call(self, hook: str, *args: Any) -> None:
        """Run one hook of all middleware. What a hook raises ends the call, as the function's error."""
        if not self._middleware:
            return
        ordered = reversed(self._middleware) if hook in _REVERSED else self._middleware
        for middleware in ordered:
            result = getattr(middleware, hook)(*args)
            if isinstance(result, Awaitable):
                await self._io.resolve(result)

    async def unmemoized(self) -> None:
        await self.call("after_memoization")
        await self.begin_execution()

    async def begin_execution(self) -> None:
        self._is_executing = True
        await self.call("before_execution")

    async def end_execution(self) -> None:
        """``after_execution``, for each ``before_execution`` once."""
        if self._is_executing:
            self._is_executing = False
            await self.call("after_execution")

    async def before_step(self, step: StepInfo) -> None:
        await self.call("before_step", step)

    async def after_step(self, report: StepReport) -> None:
        if self._middleware:
            await self.call("after_step", report.info, result_of(report))

    async def transform_step(self, report: StepReport) -> None:
        """``transform_output`` of a step."""
        if self._middleware:
            result = result_of(report)
            await self.call("transform_output", result)
            report.replace(result.output, result.error)


def result_of(report: StepReport) -> TransformOutputResult:
    error = report.error if isinstance(report.error, Exception) else None
    step = TransformOutputStepInfo(report.info.id, Opcode(report.op.op), report.op.opts)
    return TransformOutputResult(error, report.output, step)
