"""Durably's gateway in Quart: ``app.register_blueprint(gateway_blueprint(gateway), url_prefix="/api")``."""

from collections.abc import Callable
from typing import Any

from quart import Blueprint, Response, request

from durably.temporal.gateway import Gateway, GatewayRequest

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


def gateway_blueprint(
    gateway: Gateway, name: str = "temporal", principal: Callable[[], Any] = lambda: None
) -> Blueprint:
    blueprint = Blueprint(name, __name__)

    @blueprint.route("/", defaults={"path": ""}, methods=METHODS, provide_automatic_options=False)
    @blueprint.route("/<path:path>", methods=METHODS, provide_automatic_options=False, merge_slashes=False)
    async def answer(path: str) -> Response:
        asked: Any = request
        mount = asked.root_path + asked.path.removesuffix(path).rstrip("/")
        made = await gateway.handle(
            GatewayRequest(
                method=asked.method,
                path=path,
                mount=mount,
                headers=asked.headers,
                query_params=asked.args,
                body=await asked.get_data(),
                raw_request=asked._get_current_object(),
                principal=principal(),
            )
        )
        response = Response(made.stream() if made.stream else made.body or None, made.status_code, made.headers)
        response.timeout = None  # Streams of events last longer than Quart's 60 seconds.
        return response

    return blueprint
