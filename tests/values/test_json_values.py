"""Users' values on the wire."""

import enum
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durably.errors import OutputUnserializableError
from durably.values.json_values import encode_checked, encode_json
from durably.values.outputs import to_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


class Text(str):
    """Such as Django's ``SafeString``."""

    __slots__ = ()


class Count(int):
    pass


class Colour(enum.Enum):
    RED = "red"


@given(JSON)
def test_json_values_are_unchanged(value: Any) -> None:
    assert json.loads(encode_json(value)) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Text("safe"), "safe"),
        ({"n": Count(2**70)}, {"n": 2**70}),
        ({None: 1}, {"null": 1}),
        ((1, 2), [1, 2]),
        (Colour.RED, "red"),
        ("\ud800", "\ud800"),
    ],
)
def test_values_are_encoded_as_pythons_json_does(value: Any, expected: Any) -> None:
    assert json.loads(encode_json(value)) == expected


def recursive() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize("value", [object(), {"deep": [object()]}, {(1, 2): 3}, recursive(), lambda: None])
def test_values_that_json_cannot_express_are_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        encode_json(value)


@pytest.mark.parametrize("levels", [200, 201, 5_000])
def test_values_have_at_most_two_hundred_levels(levels: int) -> None:
    value: object = 1
    for _ in range(levels):
        value = [value]
    if levels == 200:
        assert encode_checked(value)[1] == value
        assert to_json(value, 'step "a"')[1] == value
        return
    with pytest.raises(ValueError, match=r"too deeply|recursion"):
        encode_checked(value)
    with pytest.raises(OutputUnserializableError, match='step "a" returned unserializable data'):
        to_json(value, 'step "a"')
