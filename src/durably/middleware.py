"""Middleware: user code around calls, steps and sent events (spec §6).

For each call the hooks of all middleware run once, client's before function's, in this order:
``transform_input``, ``after_memoization``, ``before_execution``, ``after_execution``, ``transform_output``,
``before_response``. Hooks named *after*, and ``transform_output``, run in reverse order of registration.
``before_step`` and ``after_step`` run around each executed step, ``transform_step_input`` before each step that the
engine executes is sent to it, ``before_send_events`` and ``after_send_events`` around each send of events.

With checkpointing a call executes several steps: ``before_execution``, ``after_execution`` and ``transform_output``
then run for each of them, and once more for the function's end. The function continues with its step's result, decoded
from JSON. The output of ``transform_output`` is stored, and ``transform_input`` must restore it at later calls.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from durably.protocol.events import Event
from durably.protocol.opcodes import Opcode

from . import inngest_middleware
from .errors import FunctionConfigInvalidError
from .execution import StepInfo, StepMemos, StepReport

if TYPE_CHECKING:
    from durably.functions.function import Function
    from durably.io.http_client import IO

    from .client import Client
    from .context import Context, ContextSync


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


@dataclass
class TransformStepInput:
    """A step that the engine executes: an invoke, a wait, a sleep, a fetch or an inference.

    ``opts`` are sent to the engine (an invoke's data is ``opts["payload"]["data"]``). Replace them; do not change
    the objects in them, which are the function's own.
    """

    id: str
    op: Opcode
    opts: Mapping[str, Any] | None = None


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

    async def transform_step_input(self, step: TransformStepInput) -> None:
        """Before a step that the engine executes is sent to it; ``step.opts`` may be replaced."""

    async def before_send_events(self, events: list[Event]) -> None:
        """Before events are sent; the list and its events may be changed."""

    async def after_send_events(self, result: SendEventsResult) -> None:
        """After events were sent, or could not be."""


class MiddlewareSync:
    """Base of sync middleware, for functions of both kinds. The hooks are those of ``Middleware``.

    In an async function the hooks run on its event loop. Hooks that block (files, the network) set ``runs_in_thread``:
    then async functions wait for them in a worker thread. Context variables that such a hook sets are not kept.
    """

    runs_in_thread: ClassVar[bool] = False

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

    def transform_step_input(self, step: TransformStepInput) -> None:
        """See ``Middleware.transform_step_input``."""

    def before_send_events(self, events: list[Event]) -> None:
        """See ``Middleware.before_send_events``."""

    def after_send_events(self, result: SendEventsResult) -> None:
        """See ``Middleware.after_send_events``."""


MiddlewareFactory = Callable[["Client", object], Middleware | MiddlewareSync]
"""A middleware class, or anything that makes a middleware of the client and the framework's request."""

HOOKS = frozenset(name for name in vars(Middleware) if not name.startswith("_"))
_REVERSED = frozenset(("after_execution", "transform_output", "after_step", "after_send_events"))
_NO_OPS = frozenset(vars(base)[hook] for base in (Middleware, MiddlewareSync) for hook in HOOKS)
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
    bases = (object, Middleware, MiddlewareSync, inngest_middleware.base_of(cls))
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


def _make(factory: MiddlewareFactory, client: Client, raw_request: object) -> Any:
    middleware = factory(client, raw_request)
    cls: type = type(middleware)
    if (fault := _fault_of_class(cls)) is not None:
        raise FunctionConfigInvalidError(f"middleware made by {_name_of(factory)}: {fault}")
    return inngest_middleware.adapt(middleware)


class MiddlewareStack:
    """The middleware of one call or one sending, told by ``execution`` of its progress (``execution.Hooks``)."""

    def __init__(self, factories: Sequence[MiddlewareFactory], client: Client, raw_request: object, io: IO) -> None:
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
            if method is None or getattr(method, "__func__", None) in _NO_OPS:
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
