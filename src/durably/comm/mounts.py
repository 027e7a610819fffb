"""The calls of ``serve`` in this process: one for each path of an app.

A second call would silently replace the functions of the first one, or lose its own, so it is refused. A module that
is loaded again repeats its call, and may: then the new functions are served.
"""

from collections.abc import MutableMapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from durably.client import Client
from durably.errors import FunctionConfigInvalidError
from durably.functions.function import Function

from .handler import CommHandler


class Mount:
    """An endpoint, whose handler is replaced when its module is loaded again."""

    def __init__(self, handler: CommHandler) -> None:
        self.handler = handler


Mounts = MutableMapping[str, Mount]
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


def add_mount(mounts: Mounts, path: str, handler: CommHandler) -> Mount | None:
    """The new endpoint; ``None`` if the path has one, which has the new handler now."""
    if (mount := mounts.get(path)) is not None:
        mount.handler = handler
        return None
    mounts[path] = mount = Mount(handler)
    return mount
