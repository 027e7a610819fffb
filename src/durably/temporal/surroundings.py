"""What each activity runs within: an app's context, say, without which its database or configuration is not there."""

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor


class Surroundings(Interceptor):
    """``temporal.add_worker(…, interceptors=[Surroundings(app.app_context)])``.

    ``enter`` makes a context manager for each attempt of an activity; a synchronous one enters it in its own thread.
    """

    def __init__(self, enter: Callable[[], AbstractContextManager[Any]]) -> None:
        self._enter = enter

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Surrounded(next, self._enter)


class _Surrounded(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, enter: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__(next)
        self._enter = enter

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        if is_async(input.fn):
            with self._enter():
                return await super().execute_activity(input)
        input.fn = self._surround(input.fn)
        return await super().execute_activity(input)

    def _surround(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any) -> Any:
            with self._enter():
                return function(*args)

        return run


def is_async(function: Callable[..., Any]) -> bool:
    """Whether an activity is asynchronous, as the SDK sees it; instances of a class with ``__call__`` may be too."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
