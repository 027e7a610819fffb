"""Arguments of ``serve``: the app, paths and origins, streaming. Options of the other parts of adapters.

Adapters and ``CommHandler`` check those of ``serve`` here.
"""

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict
from urllib.parse import urlsplit, urlunsplit

from durably.app import App
from durably.errors import FunctionConfigInvalidError, SigningKeyMissingError, URLInvalidError
from durably.functions.function import Function
from durably.protocol.durations import DurationWithUnit
from durably.protocol.text import redact_url
from durably.settings import (
    DEFAULT_SERVE_PATH,
    SERVE_PATH,
    THREAD_POOL_MAX_WORKERS,
    Environment,
    Streaming,
    check_serve_path,
    is_test_run,
    parse_url,
)


def mount_path(serve_path: str | None) -> str:
    """The path of the endpoint, with its leading slash.

    It is the argument, ``DURABLY_SERVE_PATH``, or the default. Raises ``FunctionConfigInvalidError``.
    """
    return with_slash(read_path(serve_path, "serve_path") or Environment().read(SERVE_PATH) or DEFAULT_SERVE_PATH)


def read_path(path: str | None, argument: str) -> str | None:
    """Read an argument that is a path. Raises ``FunctionConfigInvalidError``."""
    return check_serve_path(path, argument) if path else None


def with_slash(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"


def read_origin(text: str, what: str) -> tuple[str, str]:
    """The scheme and network location of a URL.

    Raises ``URLInvalidError``, which names ``what``.
    """
    parts = urlsplit(parse_url(text, what))
    return parts.scheme, parts.netloc


def read_serve_origin(text: str, what: str) -> tuple[str, str]:
    """The scheme and network location of an origin, which has no path.

    Raises ``URLInvalidError``, which names ``what``.
    """
    parts = urlsplit(parse_url(text, what))
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise URLInvalidError(
            f"{what} is {redact_url(urlunsplit(parts))!r}, which is more than an origin: write only its scheme and "
            "host, and the rest in serve_path (DURABLY_SERVE_PATH) or, behind a proxy that rewrites paths, public_path"
        )
    return parts.scheme, parts.netloc


StreamingOption = Streaming | str | bool | None
"""Values that adapters accept as ``streaming``."""


class EndpointOptions(TypedDict, total=False):
    """Options of ``serve`` on platforms that buffer answers."""

    enable_unauthed_sync: bool | None
    """``False`` refuses unsigned syncs in production mode."""
    public_path: str | None
    """Replaces the path of the app's URL for the engine, for example behind a proxy."""
    serve_origin: str | None
    """Replaces the scheme and host of the app's URL for the engine."""
    serve_path: str | None
    """The path of the endpoint."""


class ServeOptions(EndpointOptions, total=False):
    """Options of ``serve`` in all other frameworks."""

    streaming: StreamingOption
    """Keeps connections of long calls alive."""


class DurableEndpointOptions(TypedDict, total=False):
    """Options of ``endpoint``, which needs exactly one of the first two."""

    authorize: Callable[[Any, dict[str, Any]], bool | Awaitable[bool]] | None
    """Gets the request and the data of the run, and returns whether the caller may start it.

    It may be async. Links have a token, and are not passed to it.
    """
    allow_anonymous: bool
    """``True`` lets everybody start runs whom the app itself lets through."""
    wait: DurationWithUnit
    """The time for a run, such as ``"10s"``, the default. If it takes longer, the answer is 202 with a link."""
    expires: DurationWithUnit
    """The life of a link, such as ``"1d"``, the default."""


class DashboardOptions(TypedDict, total=False):
    """Options of ``dashboard``, which needs exactly one of them."""

    authorize: Callable[[Any], Any] | None
    """Gets a ``durably.dashboard.Action`` and returns whether it is allowed. It may be async."""
    allow_anonymous: bool
    """``True`` shows all data to every visitor, who can also change runs."""


class StreamsOptions(TypedDict, total=False):
    """Options of ``streams``, which needs exactly one of the first two."""

    authorize: Callable[[Any, str], bool | Awaitable[bool]] | None
    """Gets the request and a run's id (or another channel), and returns whether the visitor may read its messages.

    It may be async. Requests with a token are not passed to it.
    """
    allow_anonymous: bool
    """``True`` lets everybody read who knows the id of a run."""
    max_listeners: int | None
    """The most open streams of this process. Others get 503."""


def read_streaming(option: StreamingOption) -> Streaming | None:
    """Read the argument ``streaming``; ``None`` means that the environment decides.

    Raises ``FunctionConfigInvalidError``.
    """
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


# -- functions, threads


def thread_count(environment: Environment, *, is_in_process: bool) -> int:
    """The number of threads for sync functions; 0 for none.

    The default is that of ``ThreadPoolExecutor``.
    """
    workers = environment.read(THREAD_POOL_MAX_WORKERS)
    if workers == 0 and is_in_process:
        workers = None  # No request has a thread in which a sync function could run.
    return min(32, (os.cpu_count() or 1) + 4) if workers is None else workers


def check_arguments(client: object, functions: object) -> None:
    """Check the arguments of ``serve``, whose order is easily confused."""
    if not isinstance(client, App):
        raise FunctionConfigInvalidError(f"serve takes a durably.Client as its client, not {client!r}")
    if isinstance(functions, str | bytes | Mapping) or not isinstance(functions, Iterable):
        raise FunctionConfigInvalidError(f"serve takes a list of functions, not {functions!r}")


def check_production(client: App) -> None:
    """Raises the error that prevents serving the app.

    A test run needs no engine.
    """
    if is_test_run():
        return
    _ = client.api_origin
    if client.signing_key is None:
        raise SigningKeyMissingError


def warn_of_other_apps(client: App, functions: Sequence[Function[Any]]) -> None:
    """Warn of functions of a client with another id.

    They run without that client's middleware, and keep its id as their prefix.
    """
    for function in functions:
        if function.opts.app_id != client.app_id:
            client.logger.warning(
                "the app %r serves the function %r, which a client of the app %r made; middleware and settings of "
                "that client are not used",
                client.app_id,
                function.id,
                function.opts.app_id,
            )


def index_functions(functions: Sequence[Function[Any]]) -> dict[str, Function[Any]]:
    by_id: dict[str, Function[Any]] = {}
    for function in functions:
        if not isinstance(function, Function):
            raise FunctionConfigInvalidError(f"serve takes functions made by client.create_function, not {function!r}")
        for function_id in function.entries:
            if function_id in by_id:
                raise FunctionConfigInvalidError(f'two functions have the id "{function_id}"; fn_id must be unique')
            by_id[function_id] = function
    return by_id
