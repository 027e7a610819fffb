"""JSON as a tree that folds, of a bounded number of nodes, and the page of a value.

What is left out is named by its JSON pointer (RFC 6901), so that it can be asked for.
"""

import asyncio
import json
import re
from collections import deque
from typing import Any

import msgspec

from durably.protocol.text import printable_json

from .formats import format_count, format_size
from .messages import DashboardResponse
from .visit import PageError, Visit

MOST_NODES = 400
MOST_CHILDREN = 100
MOST_DEPTH = 16
MOST_TEXT = 1_000
_MOST_SHOWN = 500_000
"""Characters of a text that the page of a value shows."""
MOST_BYTES = 256 * 1024
"""A larger value is not read until a person asks for it."""
_MOST_OPEN = 30
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")


class JsonNode(msgspec.Struct, kw_only=True):
    """A value in a tree.

    ``kind`` is ``"object"``, ``"array"``, ``"string"``, ``"number"`` or ``"word"``. ``key`` is the JSON text of its
    key, or its place in an array. ``text`` is the JSON of a plain value, and a summary of another. ``children`` are the
    first ones. ``pointer`` names the value if parts of it are left out: ``rest`` children from ``shown`` on, or
    the end of a long text.
    """

    kind: str
    text: str
    key: str | None = None
    children: list["JsonNode"] = []
    is_open: bool = False
    pointer: str | None = None
    shown: int = 0
    rest: int = 0


class PointerError(ValueError):
    """A pointer names no part of the value."""


def build_tree(value: Any, *, pointer: str = "", start: int = 0, most_text: int = MOST_TEXT) -> JsonNode:
    """The tree of a value, breadth first: what is nearer to the root is shown first.

    ``pointer`` is that of the value itself, ``start`` the first child to show.
    """
    root = _leaf(value, pointer, most_text)
    budget, lines = MOST_NODES, _MOST_OPEN
    is_only = True
    """Whether each container until now is the only child of another."""
    queue = deque([(root, value, pointer, 0, start)])
    while queue:
        node, container, at, depth, first = queue.popleft()
        if not isinstance(container, dict | list):
            continue
        items = list(container.items()) if isinstance(container, dict) else list(enumerate(container))
        shown = items[first : first + min(MOST_CHILDREN, budget)] if depth < MOST_DEPTH else []
        budget -= len(shown)
        for key, child in shown:
            below = f"{at}/{_escape(str(key))}"
            made = _leaf(child, below, MOST_TEXT)
            made.key = _shown_json(key) if isinstance(container, dict) else str(key)
            node.children.append(made)
            queue.append((made, child, below, depth + 1, 0))
        node.shown = first + len(shown)
        node.rest = max(len(items) - node.shown, 0)
        node.pointer = at if node.rest else None
        node.is_open = bool(shown) and (depth == 0 or is_only or lines >= len(shown))
        is_only = is_only and len(items) == 1
        lines -= len(shown) if node.is_open else 0
    return root


def find(value: Any, pointer: str) -> Any:
    """The part of a value that a pointer names. Raises ``PointerError``."""
    if not pointer:
        return value
    if not pointer.startswith("/"):
        raise PointerError(pointer)
    for part in pointer[1:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and _NUMBER.fullmatch(key) and int(key) < len(value):
            value = value[int(key)]
        else:
            raise PointerError(pointer)
    return value


def decode(encoded: bytes | msgspec.Raw) -> Any:
    """The value of JSON.

    Text that cannot be decoded, such as too deep nesting, is returned as it is.
    """
    try:
        return msgspec.json.decode(encoded)
    except (msgspec.DecodeError, RecursionError):
        return bytes(encoded).decode(errors="replace")


def tree_of(encoded: bytes | msgspec.Raw) -> JsonNode:
    """The tree of JSON; of a large value only its size."""
    size = len(bytes(encoded))
    if size > MOST_BYTES:
        return JsonNode(kind="large", text=format_size(size), pointer="")
    return build_tree(decode(encoded))


def _leaf(value: Any, pointer: str, most_text: int) -> JsonNode:
    match value:
        case dict():
            return JsonNode(kind="object", text=_count(len(value), "key"), children=[])
        case list():
            return JsonNode(kind="array", text=_count(len(value), "item"), children=[])
        case str():
            is_long = len(value) > most_text
            text = _shown_json(value[:most_text])
            return JsonNode(
                kind="string",
                text=text[:-1] + "…" if is_long else text,
                pointer=pointer if is_long else None,
                rest=len(value) - most_text if is_long else 0,
            )
        case bool() | None:
            return JsonNode(kind="word", text=json.dumps(value))
    return JsonNode(kind="number", text=json.dumps(value))


def _count(number: int, thing: str) -> str:
    return f"{format_count(number)} {thing}{'' if number == 1 else 's'}"


def _shown_json(value: Any) -> str:
    return printable_json(json.dumps(value, ensure_ascii=False))


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


# the page of a value


async def answer_value(visit: Visit, name: str, encoded: bytes, of: str, **values: Any) -> DashboardResponse:
    """The part of a value that the query names.

    ``name`` is that of a downloaded file. ``values`` are for the template: the ``run`` or the ``event``.
    """
    at, first = visit.query.get("at", ""), visit.query.get("from", "0")
    if "raw" in visit.query:
        headers = [
            ("content-type", "application/json"),
            ("content-disposition", f'attachment; filename="{name}.json"'),
            ("cache-control", "no-store"),
        ]
        return DashboardResponse(status_code=200, headers=headers, body=encoded)
    start = int(first) if first.isascii() and first.isdigit() and len(first) < 10 else 0
    try:
        # In a thread: the event loop may be the app's own, and the value may have megabytes.
        tree = await asyncio.to_thread(
            lambda: build_tree(find(decode(encoded), at), pointer=at, start=start, most_text=_MOST_SHOWN)
        )
    except PointerError:
        raise PageError(404, "There is no such value", f"The value has nothing at {at}.") from None
    return await visit.page("value.html", of=of, at=at, start=start, tree=tree, **values)
