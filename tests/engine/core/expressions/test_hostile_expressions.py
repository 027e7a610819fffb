"""Expressions and data that mean harm: an error or a result, soon; never a hang, never another exception."""

import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from durably.engine.core.expressions import ExpressionInvalidError, compile_expression

SOON = 5.0
"""Seconds of CPU that nothing here may take; all take a tenth of it. A busy machine's clock says nothing."""


@pytest.mark.parametrize(
    "expression",
    [
        "!" * 9_000 + "event.a",
        "-" * 9_000 + "event.a",
        "[" * 4_000 + "]" * 4_000,
        "event" + ".a" * 4_000,
        "event" + "[0]" * 3_000,
        "size(" * 1_900 + "1" + ")" * 1_900,
        "event.a" + ".trim()" * 1_400,
        "1 ? 2 : " * 1_200 + "3",
        "1 - " * 2_400 + "1",
        "1 == " * 1_900 + "1",
        "event.a == 1" * 10_000,
        "(" * 5_000,
        '"' + "\\a" * 4_900,
        '"""' + '"' * 9_000,
        "'" * 9_999,
        "\x00",
        "\ud800",
        "event.a.matches('" + "(a" * 900 + "')",
        "event.a.matches('((a{100}){100}){100}')",
        "1" * 9_000,
        "[1].exists(x, " * 600 + "x",
    ],
    ids=lambda expression: expression[:20],
)
def test_hostile_expression_is_refused_soon(expression: str) -> None:
    started = time.thread_time()
    with pytest.raises(ExpressionInvalidError):
        compile_expression(expression)
    assert time.thread_time() - started < SOON


@pytest.mark.parametrize(
    "expression",
    [
        "(" * 4_900 + "true" + ")" * 4_900,
        " && ".join(["true"] * 1_200),
        "false || " * 1_000 + "true",
        "1 + " * 2_000 + "1 == 2001",
        "1 in [" + "0, " * 3_000 + "1]",
    ],
    ids=lambda expression: expression[:20],
)
def test_long_but_flat_is_fine(expression: str) -> None:
    assert compile_expression(expression).matches({}, now=0)


@pytest.mark.parametrize(
    "expression",
    [
        "event.l.all(a, event.l.all(b, event.l.all(c, event.l.all(d, a + b + c + d > 0))))",
        "event.l.map(a, event.l.map(b, event.l)).size() > 0",
        "event.l.all(a, event.l == async.l)",
        "event.l.all(a, 'x' in event.l || true)",
        "event.l.all(a, (event.s + event.s + a).contains('y') || true)",
        "event.l.all(a, event.s.matches('(x+x+)+y') || true)",
        "event.s.matches('((xx?){30}){30}y')",
        "event.l.all(a, [double(event.s), date(event.s), duration(event.s), int(event.s)] == [a])",
        "event.l.all(a, (event.l + '').contains('y') || true)",
        "event.s.matches('(x+x+)+y') || " + "event.s + " * 60 + "event.s == 'x'",
    ],
)
def test_work_of_an_expression_is_bounded(expression: str) -> None:
    compiled = compile_expression(expression)
    event = {"l": list(range(1, 20_000)), "s": "1" * 200_000 + "x" * 200_000}
    later = {"l": list(range(1, 20_000))}
    started = time.thread_time()
    assert not compiled.matches(event, later, now=0)
    assert time.thread_time() - started < SOON


def test_ten_thousand_elements_are_evaluated_soon() -> None:
    event = {"rows": [{"id": n} for n in range(10_000)]}
    assert compile_expression("event.rows.exists(row, row.id == 9999)").matches(event, now=0)


def test_data_nested_too_deeply_to_compare_is_unknown() -> None:
    def nest() -> Any:
        value: Any = []
        for _ in range(5_000):
            value = [value]
        return {"deep": value}

    assert not compile_expression("event.deep == async.deep").matches(nest(), nest(), now=0)
    assert compile_expression("event.deep + 'x'").value(nest(), now=0) is None


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text("aé\ud800 1", max_size=3), st.just(10**400)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)),
    max_leaves=5,
)
documents = st.dictionaries(st.sampled_from(["a", "b", "data"]), json_values)
atoms = st.sampled_from(
    [
        "event",
        "async",
        "event.a",
        "event.b",
        "async.a",
        "event.data.a",
        "event.a[0]",
        'event["b"]',
        "x",
        "null",
        "true",
        "false",
        "0",
        "1",
        "-1",
        "2.5",
        "1e308",
        "'a'",
        "''",
        "'2020-01-01T00:00:00Z'",
        "'1h'",
        "'-1h'",
        "9223372036854775807",
        "-9223372036854775808",
        "[]",
        "[1]",
        "{}",
        "{'a':1}",
        "b'a'",
        "int",
        "'9999-12-31T23:59:59Z'",
        "'99999w'",
        "'1e999'",
        "'UTC'",
        "1577836800000",
        "now()",
    ]
)
one_argument = st.sampled_from(
    [
        "size",
        "date",
        "timestamp",
        "duration",
        "now_plus",
        "now_minus",
        "json_parse",
        "b64decode",
        "lowercase",
        "uppercase",
        "int",
        "uint",
        "double",
        "string",
        "bool",
        "bytes",
        "dyn",
        "type",
    ]
)
methods = st.sampled_from(["contains", "startsWith", "endsWith", "matches", "getHours"])
no_argument_methods = st.sampled_from(
    [
        "size",
        "trim",
        "lowerAscii",
        "upperAscii",
        "getFullYear",
        "getMonth",
        "getDayOfMonth",
        "getDate",
        "getDayOfWeek",
        "getDayOfYear",
        "getHours",
        "getMinutes",
        "getSeconds",
        "getMilliseconds",
    ]
)
macros = st.sampled_from(["exists", "all", "exists_one", "filter", "map"])
operators = st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in", "+", "-", "*", "/", "%", "&&", "||"])
expressions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, operators, inner),
        st.builds("{}({})".format, one_argument, inner),
        st.builds("({}).{}({})".format, inner, methods, inner),
        st.builds("({}).{}()".format, inner, no_argument_methods),
        st.builds("({}).{}(x, {})".format, inner, macros, inner),
        st.builds("({})[{}]".format, inner, inner),
        st.builds("({}).a".format, inner),
        st.builds("has(({}).a)".format, inner),
        st.builds("{}({})".format, st.sampled_from("!-"), inner),
        st.builds("({} ? {} : {})".format, inner, inner, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{{'a': {}}}".format, inner),
    ),
    max_leaves=8,
)


@given(expressions, documents, st.none() | documents)
@example("event.a * 0.5", {"a": 10**400}, None)
@example("date('9999-12-31') + duration('99w')", {}, None)
@example("event.a % 1 + event.a / 0.0", {"a": float("nan")}, None)
def test_evaluation_raises_nothing(expression: str, event: Any, later: Any) -> None:
    try:
        compiled = compile_expression(f"[1].map(x, {expression})")
    except ExpressionInvalidError:
        return
    assert compiled.matches(event, later, now=0) is False
    compiled.value(event, later, now=0)


tokens = st.sampled_from(
    [
        "event",
        ".",
        "async",
        "data",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "?",
        "&&",
        "||",
        "!",
        "-",
        "+",
        "*",
        "/",
        "%",
        "==",
        "!=",
        "<",
        ">",
        "in",
        "null",
        "true",
        "1",
        "2.5",
        "'a'",
        '"b"',
        "r'c'",
        "has",
        "size",
        "map",
        "x\n",
        "",
        "",
        "",
        "//",
        "\n",
        "'",
        '"',
        "\\",
        "\x00",
        "é",
    ]
)


@given(st.lists(tokens, max_size=25).map("".join) | st.lists(tokens, max_size=25).map(" ".join) | st.text())
def test_compiling_raises_only_expression_invalid_error(text: str) -> None:
    try:
        compiled = compile_expression(text)
    except ExpressionInvalidError:
        return
    compiled.matches({}, now=0)
