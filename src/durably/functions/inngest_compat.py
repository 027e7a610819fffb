"""Middleware written for the ``inngest`` package.

The module accepts or refuses its classes, and handles the differences of hooks.

Such classes are recognised by the modules of their bases, without an import of ``inngest``. The module uses one private
part of it: the enum of ops in ``inngest._internal.server_lib``, because such middleware compares ops by identity.
Checked with inngest 0.5.19. If the enum is missing, such middleware is refused with an error that names the reason.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import Any

import msgspec

from durably.protocol.events import Event

_PACKAGE = "inngest"
_OPS_MODULE = "inngest._internal.server_lib"
_REFUSED = {
    "inngest_encryption": (
        "it sends the data of parallel invokes unencrypted. Use durably.encryption.EncryptionMiddleware, which takes "
        "the same arguments and reads what it wrote"
    )
}
"""By package, the reason why its middleware is unsafe, and the replacement."""


def fault_of_factory(factory: Any) -> str | None:
    """The reason why a factory function's middleware is refused, by its module."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    name = getattr(factory, "__qualname__", type(factory).__name__)
    return _fault_of_package(factory, name.partition(".")[0])


def fault_of_class(cls: type, hooks: Collection[str]) -> str | None:
    """The reason why a middleware class is refused.

    ``hooks`` are the hooks that Durably calls.
    """
    faults = (_fault_of_package(base, cls.__name__) for base in cls.__mro__)
    if fault := next(filter(None, faults), None):
        return fault
    if (base := base_of(cls)) is None:
        return None
    if _official_ops() is None:
        return (
            f"{cls.__name__} was written for a version of the inngest package that is not known here. "
            "Write it as a durably.Middleware"
        )
    unknown = [
        name
        for name, default in vars(base).items()
        if not name.startswith("_") and callable(default) and name not in hooks and getattr(cls, name) is not default
    ]
    if unknown:
        return (
            f"{cls.__name__}, written for the inngest package, has a hook that Durably does not call: "
            f"{', '.join(unknown)}. Write it as a durably.Middleware"
        )
    return None


def _fault_of_package(owner: Any, name: str) -> str | None:
    package = str(getattr(owner, "__module__", "")).partition(".")[0]
    return f"{name} of {package} is not safe here: {_REFUSED[package]}" if package in _REFUSED else None


def base_of(cls: type) -> type | None:
    """The base class of ``inngest`` from which a middleware class derives."""
    return next((base for base in reversed(cls.__mro__) if base.__module__.partition(".")[0] == _PACKAGE), None)


def adapt(middleware: Any) -> Any:
    """The middleware, or an adapter for it if it was written for ``inngest``."""
    if base_of(type(middleware)) is None:
        return middleware
    return InngestMiddleware(middleware, _official_ops())


def _official_ops() -> Any:
    """``inngest``'s enum of ops; ``None`` if this version of the package has none."""
    return getattr(sys.modules.get(_OPS_MODULE), "Opcode", None)


class InngestMiddleware:
    """Middleware of the ``inngest`` package.

    Its hooks get the types of that package if they need them. Missing hooks do nothing.
    """

    def __init__(self, middleware: Any, ops: Callable[[str], Any]) -> None:
        self._middleware = middleware
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._middleware, name)

    def transform_output(self, result: Any) -> Awaitable[None] | None:
        """Call the hook with ``inngest``'s op.

        The op of the ``TransformOutputResult`` is converted to ``inngest``'s. The changed result is converted back.
        """
        step = result.step
        theirs = replace(result)
        if step is not None:
            with contextlib.suppress(ValueError):  # an op that it does not know, so it cannot compare with it
                theirs.step = replace(step, op=self._ops(step.op.value))

        def take_over() -> None:
            result.output, result.error = theirs.output, theirs.error

        return _then(self._middleware.transform_output(theirs), take_over)

    def before_send_events(self, events: list[Event]) -> Awaitable[None] | None:
        """Convert events that the middleware added, which may be ``inngest``'s."""

        def take_over() -> None:
            events[:] = [
                msgspec.convert(event.model_dump(), Event)
                if type(event).__module__.partition(".")[0] == _PACKAGE
                else event
                for event in events
            ]

        return _then(self._middleware.before_send_events(events), take_over)


def _then(returned: Any, finish: Callable[[], None]) -> Awaitable[None] | None:
    if not isinstance(returned, Awaitable):
        finish()
        return None

    async def wait() -> None:
        await returned
        finish()

    return wait()
