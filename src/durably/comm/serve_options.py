"""Arguments of ``serve``: the app, paths and origins, streaming.

Adapters and ``CommHandler`` check them here.
"""

import os
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit, urlunsplit
from weakref import WeakKeyDictionary

from durably.app import App
from durably.client import Client
from durably.errors import FunctionConfigInvalidError, SigningKeyMissingError, URLInvalidError
from durably.functions.function import Function
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


H = TypeVar("H")


class Mount(Generic[H]):
    """An endpoint, whose ``CommHandler`` is replaced when its module is loaded again."""

    def __init__(self, handler: H) -> None:
        self.handler = handler


Mounts = MutableMapping[str, Mount[Any]]
"""The endpoints of an app, or of a client in frameworks without an object of the app, by path."""

_of_owners: WeakKeyDictionary[object, Mounts] = WeakKeyDictionary()


def mounts_of(owner: object) -> Mounts:
    """``owner`` is the app, or the client."""
    try:
        return _of_owners.setdefault(owner, {})
    except TypeError:  # It is neither, and the handler refuses it.
        return {}


def check_mount(mounts: Mounts, path: str, client: Client, functions: Sequence[Function[Any]]) -> str:
    """Refuse another call of ``serve`` for the path, which it returns.

    Raises ``FunctionConfigInvalidError``. Call it before the handler is made, because an engine in this process calls
    the functions of the newest handler.
    """
    mount = mounts.get(path)
    if mount is None or not isinstance(functions, Sequence) or _is_repeated(mount.handler.functions, functions):
        return path
    served = mount.handler
    if served.client is client:
        remedy = "give all functions to one call, serve(…, [*orders, *invoices])"
    else:
        remedy = "give the second one a path of its own (serve_path)"
    raise FunctionConfigInvalidError(
        f"serve was called twice for the path {path!r}, with the functions {_list(served.functions)}, and then with "
        f"{_list(functions)}, but a path has the functions of one call: {remedy}"
    )


def _is_repeated(served: Sequence[Function[Any]], functions: Sequence[Function[Any]]) -> bool:
    """Whether the call repeats an earlier one.

    It has the same functions, or one of them made again, as modules do that are loaded again.
    """
    by_id = {function.id: function for function in served}
    same = [function for function in functions if by_id.get(getattr(function, "id", "")) is function]
    if len(same) == len(served) == len(functions):
        return True
    return any(by_id.get(getattr(function, "id", ""), function) is not function for function in functions)


def _list(functions: Sequence[Function[Any]]) -> str:
    return ", ".join(repr(getattr(function, "id", function)) for function in functions) or "none"


def add_mount(mounts: Mounts, path: str, handler: H) -> Mount[H] | None:
    """The new endpoint; ``None`` if the path has one, which has the new handler now."""
    if (mount := mounts.get(path)) is not None:
        mount.handler = handler
        return None
    mounts[path] = added = Mount(handler)
    return added
