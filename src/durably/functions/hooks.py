"""Hooks of middleware: their names, and the values that they receive. ``durably.middleware`` describes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec

from durably.protocol.opcodes import Opcode

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
        "before_send_events",
        "after_send_events",
    )
)
BASES: set[type] = set()
"""The base classes of middleware, ``durably.Middleware`` and ``durably.MiddlewareSync``."""
NO_OPS: set[object] = set()
"""The hooks of the base classes, which do nothing."""


def base_of_middleware(cls: C) -> C:
    """Class decorator: register a base class, whose hooks need not be called."""
    BASES.add(cls)
    NO_OPS.update(vars(cls)[hook] for hook in HOOKS)
    return cls


class AnyMiddleware(Protocol):
    """An object with the hooks of ``durably.Middleware`` or of ``durably.MiddlewareSync``."""

    def after_memoization(self) -> Awaitable[None] | None: ...
    def before_execution(self) -> Awaitable[None] | None: ...
    def after_execution(self) -> Awaitable[None] | None: ...
    def before_response(self) -> Awaitable[None] | None: ...


MiddlewareFactory = Callable[[Any, object], AnyMiddleware]
"""A middleware class, or a function that makes a middleware of the ``Client`` and the framework's request."""


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
