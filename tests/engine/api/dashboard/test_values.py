"""Trees of JSON: what is shown of a value, and what is left out."""

import time
from typing import Any

import msgspec
import pytest

from durably.engine.api.dashboard.values import (
    MOST_BYTES,
    MOST_CHILDREN,
    JsonNode,
    PointerError,
    build_tree,
    find,
    tree_of,
)


def to_text(node: JsonNode) -> str:
    inside = ", ".join(map(to_text, node.children))
    key = "" if node.key is None else f"{node.key}: "
    if node.kind in ("object", "array"):
        return f"{key}<{inside}{' …' if node.rest else ''}>"
    return f"{key}{node.text}"


def count(node: JsonNode) -> int:
    return 1 + sum(map(count, node.children))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (-0.5, "-0.5"),
        ('a"b\n', r'"a\"b\n"'),
        ({}, "<>"),
        ({"a": [1, "x", {"b": None}]}, '<"a": <0: 1, 1: "x", 2: <"b": null>>>'),
        ({"": 1}, '<"": 1>'),
    ],
)
def test_a_small_value_is_shown_whole(value: Any, text: str) -> None:
    assert to_text(build_tree(value)) == text


def test_a_long_list_has_the_pointer_of_its_rest() -> None:
    tree = build_tree({"a/b": list(range(1000))})
    [items] = tree.children
    assert (items.text, len(items.children)) == ("1,000 items", MOST_CHILDREN)
    assert (items.pointer, items.shown, items.rest) == ("/a~1b", MOST_CHILDREN, 1000 - MOST_CHILDREN)
    more = build_tree(find({"a/b": list(range(1000))}, "/a~1b"), pointer="/a~1b", start=MOST_CHILDREN)
    assert more.children[0].text == str(MOST_CHILDREN)


def test_left_out_values_can_be_found_by_pointer() -> None:
    value = {"first": [[n] * 50 for n in range(50)], "~": {"/": "x"}}

    def check(node: JsonNode) -> None:
        if node.rest:
            assert node.pointer is not None
            assert len(find(value, node.pointer)) == node.shown + node.rest
        for child in node.children:
            check(child)

    check(build_tree(value))
    assert find(value, "/~0/~1") == "x"


@pytest.mark.parametrize(
    "pointer", ["x", "/nothing", "/list/2", "/list/-1", "/list/01", "/list/x", "/text/0", "/list/٢"]
)
def test_a_pointer_to_nothing_is_an_error(pointer: str) -> None:
    with pytest.raises(PointerError):
        find({"list": [1, 2], "text": "abc"}, pointer)


def test_a_long_text_is_cut() -> None:
    [node] = build_tree(["x" * 5000]).children
    assert len(node.text) < 1100
    assert (node.pointer, node.rest) == ("/0", 4000)


def test_deep_nesting_is_cut() -> None:
    value: Any = 1
    for _ in range(500):
        value = [value]
    assert count(build_tree(value)) < 20


def test_a_large_value_is_not_decoded() -> None:
    encoded = msgspec.json.encode({"rows": ["x" * 100] * 40_000})
    assert len(encoded) > MOST_BYTES
    began = time.process_time()
    node = tree_of(msgspec.Raw(encoded))
    assert time.process_time() - began < 0.01
    assert (node.kind, node.text) == ("large", "4.1 MB")
