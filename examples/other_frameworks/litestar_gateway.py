"""Durably's gateway in Litestar: ``Litestar([gateway_at("/api", gateway)])``."""

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from litestar import Request, asgi
from litestar.handlers import ASGIRouteHandler
from litestar.response.base import ASGIResponse
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Receive, Scope, Send

from durably.temporal.gateway import Gateway, GatewayRequest


def gateway_at(
    prefix: str, gateway: Gateway, principal: Callable[[Any], Any] = lambda request: request.scope.get("user")
) -> ASGIRouteHandler:
    @asgi(prefix, is_mount=True, copy_scope=True)
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request: Any = Request(scope)
        body, message = bytearray(), {"more_body": True}
        while message.get("more_body") and len(body) <= gateway.limits.max_body:
            message = await receive()  # type: ignore[assignment]
            body += message.get("body", b"")  # type: ignore[arg-type]
        # Litestar's own path has lost its empty segments.
        path = unquote(scope["raw_path"].decode()).partition(prefix)[2]
        answer = await gateway.handle(
            GatewayRequest(
                method=request.method,
                path=path,
                mount=prefix,
                headers=request.headers,
                query_params=request.query_params.dict(),
                body=bytes(body),
                raw_request=request,
                principal=principal(request),
            )
        )
        options: dict[str, Any] = {"status_code": answer.status_code, "headers": answer.headers}
        response = ASGIStreamingResponse(iterator=answer.stream(), **options) if answer.stream else None
        await (response or ASGIResponse(body=answer.body, **options))(scope, receive, send)

    return app
