"""The gateway as Django views: async under ASGI, sync under WSGI."""

import asyncio
from collections.abc import Callable
from typing import Any

import django.db
import django.http
import django.urls
from asgiref.sync import markcoroutinefunction, sync_to_async

from durably.temporal.gateway import Gateway, GatewayRequest, GatewayResponse, iterate_sync
from durably.temporal.gateway.messages import JSON

Urls = tuple[list[Any], str, str]


def urls(
    gateway: Gateway,
    *,
    namespace: str = "temporal",
    principal: Callable[[Any], Any] | None = None,
    csrf_exempt: bool | None = None,
    title: str = "Workflows",
) -> Urls:
    """The gateway's URLs, for ``path("api/", durably.temporal.django.urls(gateway))``, as with ``admin.site.urls``.

    Their OpenAPI document is at ``openapi.json``. ``authorize`` gets ``request.user`` as ``action.principal`` unless
    ``principal`` gives something else of the request; it may use the ORM. CSRF is checked unless the gateway allows
    anonymous use, which has no session to protect; ``csrf_exempt=True`` is for APIs whose users come with tokens.
    """

    def document(request: Any) -> Any:
        content = gateway.document(mount=request.path.removesuffix("/openapi.json"), title=title)
        return django.http.HttpResponse(content, content_type=JSON)

    view: Any = _GatewayView(gateway, principal, gateway.allow_anonymous if csrf_exempt is None else csrf_exempt)
    patterns = [
        django.urls.path("openapi.json", document, name="openapi"),
        django.urls.re_path(r"^(?P<path>.+)$", view, name="gateway"),
    ]
    return patterns, "durably_temporal", namespace


class _GatewayView:
    """Async where an event loop runs (ASGI), sync elsewhere (WSGI); Django asks at each request."""

    _coroutine_marks = vars(markcoroutinefunction(lambda: None))

    def __init__(self, gateway: Gateway, principal: Callable[[Any], Any] | None, csrf_exempt: bool) -> None:
        self._gateway = gateway
        self._principal = principal
        self.csrf_exempt = csrf_exempt

    @property
    def _non_atomic_requests(self) -> set[str]:
        """What ``transaction.non_atomic_requests`` sets, for every database: the views write to none."""
        return set(django.db.connections)

    def __getattr__(self, name: str) -> Any:
        if name in self._coroutine_marks and asyncio._get_running_loop() is not None:
            return self._coroutine_marks[name]
        raise AttributeError(name)

    def __call__(self, request: Any, path: str) -> Any:
        if asyncio._get_running_loop() is not None:
            return self._answer(request, path)
        principal = self._principal(request) if self._principal else getattr(request, "user", None)
        response = self._gateway.handle_sync(_to_gateway(request, path, principal))
        return _to_django(response, None if response.stream is None else iterate_sync(response.stream()))

    async def _answer(self, request: Any, path: str) -> Any:
        gateway_request = _to_gateway(request, path, await self._principal_of(request))
        gateway_request.call_blocking = _in_djangos_thread
        response = await self._gateway.handle(gateway_request)
        return _to_django(response, None if response.stream is None else response.stream())

    async def _principal_of(self, request: Any) -> Any:
        if self._principal is not None:
            return await sync_to_async(self._principal)(request)
        if hasattr(request, "auser"):
            return await request.auser()
        # Evaluated where the ORM may be used: before Django 5 the user is lazy.
        return await sync_to_async(lambda: _evaluated(getattr(request, "user", None)))()


def _evaluated(user: Any) -> Any:
    getattr(user, "is_authenticated", None)
    return user


async def _in_djangos_thread(hook: Callable[[], Any]) -> Any:
    return await sync_to_async(hook)()


def _to_gateway(request: Any, path: str, principal: Any) -> GatewayRequest:
    return GatewayRequest(
        method=request.method,
        path=path,
        mount=request.path.removesuffix(path).rstrip("/"),
        headers=request.headers,
        query_params=dict(request.GET.lists()),
        body=request.body,
        raw_request=request,
        principal=principal,
    )


def _to_django(response: GatewayResponse, chunks: Any) -> Any:
    if chunks is not None:
        return django.http.StreamingHttpResponse(chunks, status=response.status_code, headers=response.headers)
    return django.http.HttpResponse(response.body, status=response.status_code, headers=response.headers)
