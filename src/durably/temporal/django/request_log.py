"""Request logging with the ids of workflows, for ``MIDDLEWARE``.

It is sync under WSGI, async under ASGI.
"""

import inspect
from collections.abc import Callable
from typing import Any

from asgiref.sync import markcoroutinefunction
from django.utils.decorators import sync_and_async_middleware

from durably.temporal.request_log import HTTP_HEADER, RequestLog


@sync_and_async_middleware  # type: ignore[untyped-decorator]
def request_log_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Middleware that logs requests with the ids of workflows.

    Its name in ``MIDDLEWARE`` is ``"durably.temporal.django.request_log.request_log_middleware"``. Put it before
    middleware whose time should count.
    """

    def log(request: Any) -> Any:
        with RequestLog(str(request.method), request.path, request.headers.get(HTTP_HEADER)) as line:
            response = get_response(request)
            line.status = response.status_code
            return response

    async def log_async(request: Any) -> Any:
        with RequestLog(str(request.method), request.path, request.headers.get(HTTP_HEADER)) as line:
            response = await get_response(request)
            line.status = response.status_code
            return response

    return markcoroutinefunction(log_async) if inspect.iscoroutinefunction(get_response) else log
