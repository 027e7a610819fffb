"""The endpoints of an app: one for each path. Adapters add them here."""

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from durably.client import Client
from durably.errors import FunctionConfigInvalidError
from durably.functions.function import Function
from durably.web import check_size

from .handler import CommHandler
from .requests import CommRequest, CommResponse
from .serve_options import ServeOptions, mount_path


class Handler(Protocol):
    """Answers the requests of an endpoint, as ``CommHandler`` does."""

    async def handle(self, method: str, request: CommRequest, /) -> CommResponse: ...

    def handle_sync(self, method: str, request: CommRequest, /) -> CommResponse: ...

    def refuse(self, error: Exception) -> CommResponse: ...


class Mount:
    """An endpoint, whose handler is replaced when its module is loaded again.

    ``check_size`` raises ``BodyTooLargeError`` for a size in bytes. If it ``has_tokens`` in URLs, adapters hide these
    from the server's log.
    """

    is_repeated = False
    """Whether the app has the endpoint from an earlier call of ``serve``."""

    def __init__(
        self,
        path: str,
        handler: Handler,
        check_size: Callable[[int], None] = check_size,
        has_tokens: bool = False,
    ) -> None:
        self.path = path
        self.handler = handler
        self.check_size = check_size
        self.has_tokens = has_tokens


Mounts = MutableMapping[str, Mount]
"""The endpoints of an app, or of a client in frameworks without an object of the app, by path."""

_of_owners: WeakKeyDictionary[object, Mounts] = WeakKeyDictionary()


def mounts_of(owner: object) -> Mounts:
    """``owner`` is the app, or the client."""
    try:
        return _of_owners.setdefault(owner, {})
    except TypeError:  # It is neither, and the handler refuses it.
        return {}


def add_mount(
    mounts: Mounts,
    framework: str,
    client: Client,
    functions: Sequence[Function[Any]],
    options: ServeOptions,
    **handler_options: Any,
) -> Mount:
    """The endpoint for a call of ``serve``.

    A call that repeats an earlier one gets its endpoint, which has the new functions now. ``handler_options`` are more
    arguments of ``CommHandler``. Raises its errors, and ``FunctionConfigInvalidError`` for other functions at the path
    of an earlier call.
    """
    path = mount_path(options.get("serve_path"))
    # First, because an engine in this process calls the functions of the newest handler.
    _check(mounts, path, client, functions)
    handler = CommHandler(client=client, framework=framework, functions=functions, **options, **handler_options)
    if (mount := mounts.get(path)) is not None:
        mount.handler, mount.is_repeated = handler, True
    else:
        mounts[path] = mount = Mount(path, handler)
    return mount


def _check(mounts: Mounts, path: str, client: Client, functions: Sequence[Function[Any]]) -> None:
    """Refuse another call of ``serve`` for the path. Raises ``FunctionConfigInvalidError``."""
    mount = mounts.get(path)
    served = None if mount is None else mount.handler
    if not isinstance(served, CommHandler) or not isinstance(functions, Sequence):
        return
    if _is_repeated(served.functions, functions):
        return
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
