"""Steps by decorator: the names of ``inngest.experimental``.

``@step("charge")`` makes a function that is a step if a durable function calls it, and an ordinary function anywhere
else. ``get_step_context`` returns the steps of the running function, without passing its context along.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from .steps import Step, StepSync

__all__ = ["get_step_context", "set_step_context", "step"]

P = ParamSpec("P")
R = TypeVar("R")

step_context: ContextVar[Step | StepSync] = ContextVar("durably_step_context")


def get_step_context() -> Step | StepSync:
    """``ctx.step`` of the running function. Raises ``LookupError`` outside of one."""
    try:
        return step_context.get()
    except LookupError:
        raise LookupError("get_step_context was called outside of a durable function") from None


@contextmanager
def set_step_context(step: Step | StepSync) -> Iterator[None]:
    """Set the result of ``get_step_context``, for example in tests.

    Raises ``RuntimeError`` if it is already set.
    """
    if step_context.get(None) is not None:
        raise RuntimeError("the step context is already set: this code runs in a durable function")
    token = step_context.set(step)
    try:
        yield
    finally:
        step_context.reset(token)


def step(step_id: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function a step of the durable function that calls it.

    Outside of a durable function it is called directly. An async durable function must await the result, so decorate an
    async function for it.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            steps: Any = step_context.get(None)
            if steps is None:
                return function(*args, **kwargs)
            return steps.run(step_id, functools.partial(function, *args, **kwargs))  # type: ignore[no-any-return]

        return call

    return decorate
