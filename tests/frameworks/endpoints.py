"""The durable endpoint that each app has, and its policy, which reads what each framework calls a request."""

from collections.abc import Callable
from typing import Any

from durably import Client, Context

from . import app_calls
from .variants import logger

PATH = "/checkout"
FUNCTION_ID = "endpoints-checkout"
client_of_tests = Client(app_id="endpoints", is_production=True, signing_key=app_calls.SIGNING_KEY)
"""It has the key of the apps, so that tests can make tokens."""


def add_endpoint(engine: str, endpoint: Callable[..., Any]) -> dict[str, Any]:
    """Hand the function to ``endpoint``; returns what it returned, by path."""
    keys: dict[str, Any] = {"signing_key": app_calls.SIGNING_KEY, "event_key": app_calls.EVENT_KEY, "logger": logger}
    client = Client(
        app_id="endpoints", is_production=True, api_base_url=engine, event_api_base_url=engine, env="my-env", **keys
    )

    @client.create_function(fn_id="checkout", trigger=[])
    async def checkout(ctx: Context) -> object: ...

    return {PATH: endpoint(checkout, path=PATH, authorize=may_start, wait="50ms")}


def without_path(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """For platforms that call a function at every path."""
    return lambda function, path, **options: endpoint(function, **options)


def may_start(request: Any, data: dict[str, Any]) -> bool:
    return _user_of(request) in (data.get("user"), "admin")


def _user_of(request: Any) -> str | None:
    """The header ``x-user``."""
    if isinstance(request, dict):  # ``scope``, ``environ``, an event of a platform
        if "headers" in request:
            return next((value.decode() for name, value in request["headers"] if name == b"x-user"), None)
        if "event" not in request:
            return str(request["HTTP_X_USER"]) if "HTTP_X_USER" in request else None
        event = request["event"]
        headers: Any = event.get("http", event)["headers"]
    else:
        headers = getattr(request, "request", request).headers  # of a handler of Tornado
    return {name.lower(): value for name, value in headers.items()}.get("x-user")
