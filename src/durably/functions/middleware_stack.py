"""The middleware of one call: checks of what users register, and the order in which hooks run."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Awaitable, Sequence
from functools import lru_cache, partial
from typing import Any

from durably import inngest_middleware
from durably.errors import FunctionConfigInvalidError
from durably.execution import StepInfo, StepReport
from durably.io.http_client import IO
from durably.protocol.opcodes import Opcode

from .hooks import (
    BASES,
    HOOKS,
    NO_OPS,
    MiddlewareFactory,
    TransformOutputResult,
    TransformOutputStepInfo,
    TransformStepInput,
)

_REVERSED = frozenset(("after_execution", "transform_output", "after_step", "after_send_events"))
_SIMILARITY = 0.9
"""Of a misspelt hook's name, as ``difflib`` counts it: a letter or two. No hook is as close to another."""
_ENGINE_OPS = frozenset(
    (
        Opcode.SLEEP,
        Opcode.WAIT_FOR_EVENT,
        Opcode.WAIT_FOR_SIGNAL,
        Opcode.INVOKE_FUNCTION,
        Opcode.AI_GATEWAY,
        Opcode.GATEWAY,
    )
)
"""Ops of the steps that the engine executes."""


def check_middleware(factories: Sequence[MiddlewareFactory], where: str) -> None:
    """Raises ``FunctionConfigInvalidError``, which begins with ``where``, for unusable or unsafe middleware.

    The product of a factory function is known only after a call: ``MiddlewareStack`` checks it too.
    """
    for index, factory in enumerate(factories):
        if (fault := _fault_of_factory(factory)) is not None:
            raise FunctionConfigInvalidError(f"{where}: {fault}")
        if (check_order := getattr(factory, "check_order", None)) is not None:
            check_order(factories[:index], where)


def _fault_of_factory(factory: Any) -> str | None:
    if not callable(factory):
        name = type(factory).__name__
        return (
            f"middleware is given as a class, or as a function of (client, raw_request) that makes it, not as {name!r} "
            f"object: one is made for each call. Give {name} itself"
        )
    if inspect.iscoroutinefunction(factory):
        return f"{_name_of(factory)} is a coroutine function; what makes a middleware must be an ordinary function"
    if isinstance(factory, type) and (fault := _fault_of_class(factory)) is not None:
        return fault
    try:
        inspect.signature(factory).bind(None, None)
    except TypeError:
        return (
            f"{_name_of(factory)} cannot be called with (client, raw_request). Where it needs more, give a function of "
            "these two that makes it, such as the one that its factory(…) returns"
        )
    except ValueError:  # Written in C, without a signature.
        pass
    return inngest_middleware.fault_of_factory(factory)


@lru_cache(maxsize=256)
def _fault_of_class(cls: type) -> str | None:
    if not any(callable(getattr(cls, hook, None)) for hook in HOOKS):
        return f"{cls.__name__} has none of the hooks of durably.Middleware ({', '.join(sorted(HOOKS))})"
    return _misspelt_hook(cls) or inngest_middleware.fault_of_class(cls, HOOKS) or _without_hooks(cls)


def _without_hooks(cls: type) -> str | None:
    """The problem of a class that defines methods but no hook. Durably would never call these methods."""
    bases = {object, *BASES, inngest_middleware.base_of(cls)}
    own = {name: value for base in cls.__mro__ if base not in bases for name, value in vars(base).items()}
    methods = sorted(name for name, value in own.items() if inspect.isfunction(value) and not name.startswith("_"))
    if not methods or not HOOKS.isdisjoint(own):
        return None
    return (
        f"{cls.__name__} overrides none of the hooks of durably.Middleware, so nothing calls its methods "
        f"({', '.join(methods)}). The hooks are {', '.join(sorted(HOOKS))}"
    )


def _misspelt_hook(cls: type) -> str | None:
    """A public method that nothing calls, with a name close to a hook's."""
    for name in dir(cls):
        if name.startswith("_") or name in HOOKS or not inspect.isfunction(getattr(cls, name, None)):
            continue
        if close := difflib.get_close_matches(name, HOOKS, n=1, cutoff=_SIMILARITY):
            return (
                f"{cls.__name__} has a method {name!r}, which is no hook: write {close[0]!r}, or, if you mean a method "
                "of your own, give it another name"
            )
    return None


def _name_of(factory: Any) -> str:
    """The name without arguments, which may be secret."""
    return str(getattr(factory, "__qualname__", type(factory).__name__))


def _make(factory: MiddlewareFactory, client: object, raw_request: object) -> Any:
    middleware = factory(client, raw_request)
    cls: type = type(middleware)
    if (fault := _fault_of_class(cls)) is not None:
        raise FunctionConfigInvalidError(f"middleware made by {_name_of(factory)}: {fault}")
    return inngest_middleware.adapt(middleware)


class MiddlewareStack:
    """The middleware of one call or one sending, called by ``execution`` (an ``execution.Hooks``)."""

    def __init__(self, factories: Sequence[MiddlewareFactory], client: object, raw_request: object, io: IO) -> None:
        self._middleware = [_make(factory, client, raw_request) for factory in factories]
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
            method = getattr(middleware, hook, None)
            if method is None or getattr(method, "__func__", None) in NO_OPS:
                continue
            if getattr(middleware, "runs_in_thread", False):
                result = await self._io.compute(partial(method, *args))
            else:
                result = method(*args)
            if isinstance(result, Awaitable):
                await self._io.resolve(result)

    async def transform_step_inputs(self, reports: Sequence[StepReport]) -> None:
        """``transform_step_input`` of those steps that the engine executes."""
        if not self._middleware:
            return
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
