"""Middleware of calls and sends: the hooks, their values and their order.

The module also checks the middleware that users register. ``durably.middleware`` has the base classes, and describes
the hooks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, TypeVar

import msgspec

from durably.errors import FunctionConfigInvalidError
from durably.execution import StepInfo, StepReport
from durably.io.http_client import IO
from durably.protocol.opcodes import Opcode

from . import inngest_compat

C = TypeVar("C", bound=type)

HOOKS = frozenset(
    (
        "transform_input",
        "after_memoization",
        "before_execution",
        "after_execution",
        "transform_output",
        "before_response",
        "before_step",
        "after_step",
        "transform_step_input",
        "transform_result",
        "before_send_events",
        "after_send_events",
    )
)
NO_OPS: set[object] = set()
"""The hooks of the base classes, which do nothing."""


def base_of_middleware(cls: C) -> C:
    """Class decorator: register a base class, whose own hooks need not be called."""
    NO_OPS.update(vars(cls)[hook] for hook in HOOKS)
    return cls


MiddlewareFactory = Callable[[Any, object], Any]
"""A middleware class, or a function that makes a middleware of the ``Client`` and the framework's request."""


@dataclass
class SendEventsResult:
    """The result of sending events.

    It has the ``ids`` of the accepted ones, and an ``error`` if some were not accepted.
    """

    error: str | None = None
    ids: list[str] = field(default_factory=list)


@dataclass
class TransformStepInput:
    """A step, as hooks see it.

    ``transform_step_input`` may replace the ``opts`` of a step that the engine executes: an invoke, wait, sleep, fetch
    or inference (an invoke's data is ``opts["payload"]["data"]``). Do not change the objects in them, which belong to
    the function.
    """

    id: str
    op: Opcode
    opts: Mapping[str, Any] | None = None


@dataclass
class TransformOutputResult:
    """The result or the error of a function or step.

    ``output`` and ``error`` may be replaced. Changes to ``step`` have no effect; it is ``None`` if the function itself
    ended.
    """

    error: Exception | None
    output: Any
    step: TransformStepInput | None

    def has_output(self) -> bool:
        return self.output is not msgspec.UNSET


# -- checks

_REVERSED = frozenset(("after_execution", "transform_output", "after_step", "after_send_events"))
_ENGINE_OPS = frozenset(
    (
        Opcode.SLEEP,
        Opcode.WAIT_FOR_EVENT,
        Opcode.WAIT_FOR_SIGNAL,
        Opcode.INVOKE_FUNCTION,
        Opcode.DEFER_ADD,
        Opcode.AI_GATEWAY,
        Opcode.GATEWAY,
    )
)
"""Ops of the steps that the engine executes."""


def list_middleware(middleware: object, where: str) -> list[MiddlewareFactory]:
    """The argument ``middleware``; empty for ``None``.

    Raises ``FunctionConfigInvalidError`` for anything else. The message begins with ``where``.
    """
    if middleware is None:
        return []
    if isinstance(middleware, str | type) or not isinstance(middleware, Iterable):
        raise FunctionConfigInvalidError(f"{where}: give a list, such as [MyMiddleware], not {middleware!r}")
    return list(middleware)


def check_middleware(factories: Sequence[MiddlewareFactory], where: str) -> None:
    """Raises ``FunctionConfigInvalidError`` for unusable or unsafe middleware.

    The message begins with ``where``. The result of a factory function is known only after a call, so
    ``MiddlewareStack`` checks it too.
    """
    for factory in factories:
        if (fault := _fault_of_factory(factory)) is not None:
            raise FunctionConfigInvalidError(f"{where}: {fault}")


def _fault_of_factory(factory: Any) -> str | None:
    if not callable(factory):
        name = type(factory).__name__
        return (
            f"middleware is given as a class, or as a function of (client, raw_request) that makes it, not as {name!r} "
            f"object: one is made for each call. Give {name} itself"
        )
    if isinstance(factory, type) and (fault := _fault_of_class(factory)) is not None:
        return fault
    return inngest_compat.fault_of_factory(factory)


@lru_cache(maxsize=256)
def _fault_of_class(cls: type) -> str | None:
    if not any(callable(getattr(cls, hook, None)) for hook in HOOKS):
        return f"{cls.__name__} has none of the hooks of durably.Middleware ({', '.join(sorted(HOOKS))})"
    return inngest_compat.fault_of_class(cls, HOOKS)


def _make(factory: MiddlewareFactory, client: object, raw_request: object) -> Any:
    middleware = factory(client, raw_request)
    cls: type = type(middleware)
    if (fault := _fault_of_class(cls)) is not None:
        name = getattr(factory, "__qualname__", type(factory).__name__)  # without arguments, which may be secret
        raise FunctionConfigInvalidError(f"middleware made by {name}: {fault}")
    return inngest_compat.adapt(middleware)


# -- calls of hooks


in_hook: ContextVar[bool] = ContextVar("durably_in_hook", default=False)


class MiddlewareStack:
    """The middleware of one call or one send (an ``execution.Hooks``).

    Without registered middleware, none is made.
    """

    def __init__(self, factories: Sequence[MiddlewareFactory], client: object, raw_request: object, io: IO) -> None:
        self._middleware = [_make(factory, client, raw_request) for factory in factories]
        self._io = io
        self._is_executing = False

    async def call(self, hook: str, *args: Any) -> None:
        """Run one hook of all middleware.

        An error of a hook ends the call, as the function's error.
        """
        ordered = reversed(self._middleware) if hook in _REVERSED else self._middleware
        for middleware in ordered:
            if not _has_hook(middleware, hook):
                continue
            method = getattr(middleware, hook)
            token = in_hook.set(True)
            try:
                if getattr(middleware, "runs_in_thread", False):
                    result = await self._io.compute(partial(method, *args))
                else:
                    result = method(*args)
                if isinstance(result, Awaitable):
                    await self._io.resolve(result)
            finally:
                in_hook.reset(token)

    @property
    def changes_values(self) -> bool:
        """Whether a hook changes the values that steps send to the engine."""
        return any(
            _has_hook(middleware, hook)
            for middleware in self._middleware
            for hook in ("transform_output", "transform_step_input")
        )

    async def transform_step_inputs(self, reports: Sequence[StepReport]) -> None:
        """Run ``transform_step_input`` for the steps that the engine executes."""
        for report in reports:
            if report.op.op in _ENGINE_OPS:
                step = TransformStepInput(report.info.id, Opcode(report.op.op), report.op.opts)
                await self.call("transform_step_input", step)
                report.op.opts = None if step.opts is None else dict(step.opts)

    async def unmemoized(self) -> None:
        await self.call("after_memoization")
        await self.begin_execution()

    async def begin_execution(self) -> None:
        self._is_executing = True
        await self.call("before_execution")

    async def end_execution(self) -> None:
        """Run ``after_execution`` once for each ``before_execution``."""
        if self._is_executing:
            self._is_executing = False
            await self.call("after_execution")

    async def before_step(self, step: StepInfo) -> None:
        await self.call("before_step", step)

    async def after_step(self, report: StepReport) -> None:
        await self.call("after_step", report.info, result_of(report))

    async def transform_step(self, report: StepReport) -> None:
        """Run ``transform_output`` for a step."""
        result = result_of(report)
        await self.call("transform_output", result)
        report.replace(result.output, result.error)


def _has_hook(middleware: Any, hook: str) -> bool:
    method = getattr(middleware, hook, None)
    return method is not None and getattr(method, "__func__", None) not in NO_OPS


def result_of(report: StepReport) -> TransformOutputResult:
    error = report.error if isinstance(report.error, Exception) else None
    step = TransformStepInput(report.info.id, Opcode(report.op.op), report.op.opts)
    return TransformOutputResult(error, report.output, step)
