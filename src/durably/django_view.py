"""A Django view that is both: async where an event loop runs (ASGI), sync elsewhere (WSGI).

What Durably's adapters for Django have in common. Knows Django, and nothing of what the views answer.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import django.db
from asgiref.sync import markcoroutinefunction


class SyncAndAsyncView:
    """``answer`` and ``answer_async`` are one view in the two worlds; both take what Django gives to views.

    Exempt from ``ATOMIC_REQUESTS``, with which Django refuses async views.
    """

    _coroutine_marks = vars(markcoroutinefunction(lambda: None))

    def __init__(
        self, answer: Callable[..., Any], answer_async: Callable[..., Awaitable[Any]], *, csrf_exempt: bool
    ) -> None:
        self._answer = answer
        self._answer_async = answer_async
        self.csrf_exempt = csrf_exempt

    def __call__(self, request: Any, **captured: Any) -> Any:
        return self._answer_async(request, **captured) if in_event_loop() else self._answer(request, **captured)

    def __getattr__(self, name: str) -> Any:
        """Django asks at each request whether the view is a coroutine function, by the marks of one."""
        if name in self._coroutine_marks and in_event_loop():
            return self._coroutine_marks[name]
        raise AttributeError(name)

    @property
    def _non_atomic_requests(self) -> set[str]:
        """What ``transaction.non_atomic_requests`` sets, for every database."""
        return set(django.db.connections)


def in_event_loop() -> bool:
    return asyncio._get_running_loop() is not None
