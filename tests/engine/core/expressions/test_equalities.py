"""Equalities that are read from an expression. An index over them loses no match."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durably.engine.core.expressions import Equality, compile_expression


@pytest.mark.parametrize(
    ("expression", "equalities"),
    [
        (
            "async.data.id == event.data.id && async.data.x > 3",
            [Equality(("data", "id"), event_path=("data", "id"))],
        ),
        ("event.data.id == async.data.id", [Equality(("data", "id"), event_path=("data", "id"))]),
        ("'a' == async.data.id", [Equality(("data", "id"), literal="a")]),
        ("async.data.id == -1.5", [Equality(("data", "id"), literal=-1.5)]),
        ("async.data.id == null", [Equality(("data", "id"), literal=None)]),
        ("async['data'].list[0] == true", [Equality(("data", "list", 0), literal=True)]),
        (
            "(async.a == 1 && (async.b == 2 && event.c == 1)) && async.d == event.d",
            [
                Equality(("a",), literal=1),
                Equality(("b",), literal=2),
                Equality(("d",), event_path=("d",)),
            ],
        ),
        ("async.a == 1 || async.b == 2", []),
        ("!(async.a == 1)", []),
        ("async.a == 1 ? true : false", []),
        ("async.a != 1 && async.a >= 1", []),
        ("event.a == 1 && event.a == event.b && async.a == async.b", []),
        ("async.a == 1 + 1", []),
        ("[1].exists(event, async.a == event)", []),
        ("lowercase(async.a) == 'x'", []),
        ("async[event.a] == 1", []),
    ],
)
def test_equalities_are_read_from_expressions(expression: str, equalities: list[Equality]) -> None:
    assert compile_expression(expression).equalities() == equalities


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (1, 1.0),
        (0, -0.0),
        (None, None),
        ("a" * 1000, "a" * 1000),
        ([1, {"a": None}], [1.0, {"a": None}]),
        (2**53 + 1, 2**53 + 1),
    ],
)
def test_equal_values_share_a_key(wanted: Any, found: Any) -> None:
    [equality] = compile_expression("async.id == event.id").equalities()
    assert equality.wanted_key({"id": wanted}) == equality.found_key({"id": found})


def test_null_and_a_missing_field_share_a_key() -> None:
    [equality] = compile_expression("async.data.id == event.data.id").equalities()
    assert equality.wanted_key({"data": {"id": None}}) == equality.found_key({"data": {}})


@pytest.mark.parametrize(("wanted", "found"), [(1, True), (1, "1"), (0, None), ("", None), ("a" * 99 + "b", "a" * 100)])
def test_different_values_have_different_keys(wanted: Any, found: Any) -> None:
    [equality] = compile_expression("async.id == event.id").equalities()
    assert equality.wanted_key({"id": wanted}) != equality.found_key({"id": found})


def test_key_of_a_long_value_is_short() -> None:
    [equality] = compile_expression("async.id == event.id").equalities()
    assert len(equality.found_key({"id": "x" * 500_000})) < 100


names = st.sampled_from(["a", "b"])
scalars = st.sampled_from([None, True, False, 0, 1, -1, 1.0, -0.0, 0.5, "", "x", 2**60, float(2**60), [], [1], {}])
documents = st.fixed_dictionaries({}, optional=dict.fromkeys("ab", scalars))
literals = st.sampled_from(["null", "true", "false", "0", "1", "1.0", "-1", "''", "'x'", "1152921504606846976", "[1]"])
paths = st.builds("{}.{}".format, st.sampled_from(["event", "async"]), names)
comparisons = st.builds(
    "{} {} {}".format, paths, st.sampled_from(["==", "==", "==", "!=", "<", ">="]), st.one_of(paths, literals)
)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["&&", "&&", "||"]), inner),
        st.builds("!({})".format, inner),
        st.builds("({} ? {} : {})".format, inner, inner, inner),
    ),
    max_leaves=6,
)


@given(conditions, documents, documents)
def test_matching_events_satisfy_every_equality(expression: str, event: Any, later: Any) -> None:
    compiled = compile_expression(expression)
    if compiled.matches(event, later, now=0):
        for equality in compiled.equalities():
            assert equality.wanted_key(event) == equality.found_key(later)
