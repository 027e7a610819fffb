"""Arguments of ``serve``: the app, paths and origins, streaming. Adapters and ``CommHandler`` check them here."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit, urlunsplit

from durably.client import Client
from durably.errors import FunctionConfigInvalidError, URLInvalidError
from durably.protocol.text import redact_url
from durably.settings import DEFAULT_SERVE_PATH, Environment, Streaming, check_serve_path, parse_url

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


def mount_path(serve_path: str | None) -> str:
    """The path of the endpoint, with its leading slash: the argument, ``DURABLY_SERVE_PATH``, or the default.

    Raises ``FunctionConfigInvalidError``.
    """
    return with_slash(read_path(serve_path, "serve_path") or Environment().serve_path or DEFAULT_SERVE_PATH)


def read_path(path: str | None, argument: str) -> str | None:
    """An argument that is a path. Raises ``FunctionConfigInvalidError``."""
    return check_serve_path(path, argument) if path else None


def with_slash(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"


def read_origin(text: str, what: str) -> tuple[str, str]:
    """Scheme and network location of a URL.

    Raises ``URLInvalidError``, which names ``what``.
    """
    parts = urlsplit(parse_url(text, what))
    return parts.scheme, parts.netloc


def read_serve_origin(text: str, what: str) -> tuple[str, str]:
    """Scheme and network location of an origin, which has no path.

    Raises ``URLInvalidError``, which names ``what``.
    """
    origin = read_origin(text, what)
    parts = urlsplit(parse_url(text, what))
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise URLInvalidError(
            f"{what} is {redact_url(urlunsplit(parts))!r}, which is more than an origin: write only its scheme and "
            "host, and the rest in serve_path (DURABLY_SERVE_PATH) or, behind a proxy that rewrites paths, public_path"
        )
    return origin


StreamingOption = Streaming | str | bool | None
"""Values that adapters accept as ``streaming``."""


def read_streaming(option: StreamingOption) -> Streaming | None:
    """``None`` means the environment decides. Raises ``FunctionConfigInvalidError``."""
    if option is None or isinstance(option, Streaming):
        return option
    if isinstance(option, bool):
        return Streaming.FORCE if option else Streaming.DISABLE
    try:
        return Streaming(option)
    except ValueError:
        raise FunctionConfigInvalidError(
            f'serve takes durably.Streaming.FORCE, "force" or True as its streaming (or Streaming.DISABLE, "disable", '
            f"False), not {option!r}"
        ) from None
