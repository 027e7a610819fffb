"""What Django's adapter, dashboard and gateway share."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import django.db
from asgiref.sync import markcoroutinefunction, sync_to_async
from django.http import HttpResponse, StreamingHttpResponse

from durably.io.background_loop import iterate_sync

from . import ServerResponse, header_pairs


def to_response(response: ServerResponse) -> Any:
    """The response of a view, async under ASGI and sync under WSGI."""
    made: Any
    if response.stream is not None:
        chunks = response.stream()
        made = StreamingHttpResponse(chunks if in_event_loop() else iterate_sync(chunks), status=response.status_code)
    else:
        made = HttpResponse(response.body, status=response.status_code)
        made["content-length"] = str(len(response.body))
    del made["content-type"]  # Django sets a default
    for name, value in header_pairs(response):
        if name.lower() == "set-cookie":
            made.cookies.load(value)
        else:
            made[name] = value
    return made


class SyncAndAsyncView:
    """A view that is async on an event loop (ASGI), and sync elsewhere (WSGI).

    ``answer`` and ``answer_async`` take a view's arguments. The view is exempt from ``ATOMIC_REQUESTS``, which Django
    does not support for async views.
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
        """The attributes that mark a coroutine function, on an event loop only.

        Django checks them at each request.
        """
        if name in self._coroutine_marks and in_event_loop():
            return self._coroutine_marks[name]
        raise AttributeError(name)

    @property
    def _non_atomic_requests(self) -> set[str]:
        """The attribute that ``transaction.non_atomic_requests`` sets, for every database."""
        return set(django.db.connections)


async def in_djangos_thread(function: Callable[[], Any]) -> Any:
    """Call a function in the thread in which async code uses the ORM."""
    return await sync_to_async(function)()


def in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def is_body_read(request: Any) -> bool:
    """Whether ``request.body`` has been read."""
    return hasattr(request, "_body")


def set_body(request: Any, body: bytes) -> None:
    """Set the value of ``request.body``."""
    request._body = body
