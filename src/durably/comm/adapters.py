"""A check in all adapters' ``serve``: the app must be one of the adapter's framework."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from durably.client import Client
from durably.errors import FunctionConfigInvalidError

P = ParamSpec("P")
R = TypeVar("R")

_APPS = {
    "fastapi.applications.FastAPI": ("FastAPI", "durably.fast_api"),
    "starlette.applications.Starlette": ("Starlette", "durably.fast_api"),
    "flask.app.Flask": ("Flask", "durably.flask"),
    "tornado.web.Application": ("Tornado", "durably.tornado"),
    "django.core.handlers.asgi.ASGIHandler": ("Django", "durably.django"),
    "django.core.handlers.wsgi.WSGIHandler": ("Django", "durably.django"),
}
"""The classes of apps, the names of their frameworks, and the adapters that serve them."""

_USES = {
    "durably.fast_api": "durably.fast_api.serve(app, client, functions)",
    "durably.flask": "durably.flask.serve(app, client, functions)",
    "durably.tornado": "durably.tornado.serve(app, client, functions)",
    "durably.django": "urlpatterns.append(durably.django.serve(client, functions))",
    "durably.digital_ocean": "main = durably.digital_ocean.serve(client, functions)",
}


def serves(adapter: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate an adapter's ``serve``: refuse an app of another framework, and name the right adapter.

    Raises ``FunctionConfigInvalidError``.
    """

    def decorate(serve: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(serve)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            first = args[0] if args else kwargs.get("app", kwargs.get("client"))
            if first is not None:
                _check(adapter, first)
            return serve(*args, **kwargs)

        return checked

    return decorate


def _check(adapter: str, first: Any) -> None:
    takes_app = "(app, " in _USES[adapter]
    if isinstance(first, Client):
        if takes_app:
            raise FunctionConfigInvalidError(f"{adapter}.serve takes the app first: {_USES[adapter]}")
        return
    framework, right = _framework_of(first)
    if takes_app and right == adapter:
        return
    if right is not None and right != adapter:
        raise FunctionConfigInvalidError(
            f"{adapter}.serve was given an app of {framework}; serve it with {right}: {_USES[right]}"
        )
    raise FunctionConfigInvalidError(f"{adapter}.serve does not take {type(first).__name__} first: {_USES[adapter]}")


def _framework_of(app: Any) -> tuple[str | None, str | None]:
    for cls in getattr(app, "__class__", type(app)).__mro__:  # __class__ of a proxy is the class of its target
        if (found := _APPS.get(f"{cls.__module__}.{cls.__qualname__}")) is not None:
            return found
    return None, None
