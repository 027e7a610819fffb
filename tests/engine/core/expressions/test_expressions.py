"""Expressions: their values, their errors, and the equalities that index waits."""

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durably.engine.core.expressions import Equality, ExpressionInvalidError, compile_expression

EVENT: dict[str, Any] = {
    "id": "01J",
    "name": "shop/order.placed",
    "ts": 1_774_512_121_538,
    "data": {
        "text": "hi",
        "int": 9,
        "double": 9.5,
        "whole": 4.0,
        "zero": 0,
        "yes": True,
        "no": False,
        "nothing": None,
        "empty": "",
        "list": [3, "ok?", True],
        "tags": ["a", "b", "c"],
        "none": [],
        "map": {"name": "x", "n": 1, "nothing": None},
        "same": {"name": "x", "n": 1.0, "nothing": None},
        "rows": [{"id": 1}, {"id": 2}],
        "encoded": "eyJuZXN0ZWQiOnsiZGF0YSI6InllYSJ9fQ==",
        "from": "2020-01-01T12:00:00",
        "odd key": 1,
    },
}
LATER: dict[str, Any] = {"name": "shop/order.paid", "data": {"text": "hi", "int": 9.0, "status": "200"}}
NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def value(expression: str) -> Any:
    """The value, which is the same if only the part of the event is known that the expression reads."""
    compiled, now = compile_expression(expression), round(NOW.timestamp() * 1000)
    found = compiled.value(EVENT, LATER, now=now)
    assert repr(compiled.value(compiled.part_of(EVENT), LATER, now=now)) == repr(found)
    return found


def matches(expression: str) -> bool:
    compiled, now = compile_expression(expression), round(NOW.timestamp() * 1000)
    found = compiled.matches(EVENT, LATER, now=now)
    assert compiled.matches(compiled.part_of(EVENT), LATER, now=now) is found
    return found


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("async.data.n > 1", {}),
        ("event.data.int > 1 || event.data.map.n == 1", {"data": {"int": 9, "map": {"n": 1}}}),
        ("event.data.list[0] == 3 && has(event.data.other)", {"data": {"list": [3, "ok?", True]}}),
        (
            "event.data.rows.exists(row, row.id == event.ts)",
            {"data": {"rows": [{"id": 1}, {"id": 2}]}, "ts": 1774512121538},
        ),
        ("event.data.text.other == 1", {"data": {"text": "hi"}}),
        ("event.data[async.name] == 1 && event.data.int == 1", {"data": EVENT["data"]}),
        ("size(event) > 1", EVENT),
    ],
)
def test_an_expression_knows_the_part_of_the_trigger_that_it_reads(expression: str, part: Any) -> None:
    assert compile_expression(expression).part_of(EVENT) == part


@pytest.mark.parametrize(
    "expression",
    [
        'event.data.text == "hi"',
        "event.data.text == async.data.text",
        'event["data"]["odd key"] == 1',
        "event.data.list[0] == 3",
        "event.data.list[0.0] == 3",
        "event.data.rows[1].id == 2",
        "async.name == 'shop/order.paid'",
        # numbers compare, whatever JSON or the expression wrote
        "event.data.int == async.data.int",
        "event.data.int > 3.141 && event.data.double <= 10",
        "1 == 1.0 && 9u == event.data.int",
        "event.data.map == event.data.same",
        "[1, 2] == [1.0, 2.0]",
        '"a" < "b" && false < true',
        # values of two types are never equal
        "true != 1 && 1 != '1' && [1] != {'a': 1}",
        "event.data.yes != 1",
        # a missing field
        'event.data.missing != "foo" && event.data.missing != 0 && event.data.missing != ""',
        "event.data.missing == null",
        "event.data.text.deeper.still == null",
        "event.data.list[7] == null && event.data.list[-1] == null",
        "event.data.missing == event.data.nothing",
        "event.data.missing != async.data.missing",
        # null
        "event.data.nothing == null && null == null",
        'null != "foo" && null != 0',
        # the ternary, && and || test for truth
        "event.data.text ? true : false",
        "event.data.missing ? false : true",
        "event.data.none ? true : false",
        "event.data.text && event.data.int == 9",
        # precedence and association
        "1 + 2 * 3 == 7 && (1 + 2) * 3 == 9",
        "10 - 3 - 2 == 5 && 16 / 4 / 2 == 2",
        "true || false && false",
        "true ? true : false ? false : false",
        "event.data.missing in ['LOL', 'Issue'] == false",
        # in
        "'b' in event.data.tags && 'name' in event.data.map",
        "event.data.text in ['ho', 'hi']",
        "9.0 in [9] && null in [null]",
        # macros
        "event.data.tags.exists(x, x == 'a')",
        "event.data.tags.exists(x, x == 'd' || x == 'a')",
        "event.data.tags.exists(x, x == 'd') == false",
        "[1, 2, 3].all(x, x > 0) && event.data.none.all(x, false)",
        "[1, 2, 3].exists_one(x, x > 2) && ![1, 2, 3].existsOne(x, x > 1)",
        "event.data.rows.exists(row, row.id == 2)",
        "event.data.map.exists(key, key == 'name')",
        "[[1], [2]].exists(x, x.exists(y, y == 2) && x.size() == 1)",
        "[1, 2].exists(x, [3].exists(x, x == 3) && x == 1)",
        "has(event.data.nothing) && has(event.data.text) && !has(event.data.missing)",
        "!((has(event.data.no) && event.data.no) || (has(event.data.zero) && event.data.zero == 1))",
        # functions of text
        "'hello'.contains('llo') && 'hello'.startsWith('he') && 'hello'.endsWith('lo')",
        "event.data.text.matches('^[a-z\\\\d]{0,10}$') && event.data.text.matches('\\w')",
        "matches(event.data.text, '^h')",
        "size('héé') == 3 && 'abc'.size() == 3 && size(event.data.map) == 3 && size(b'\\xff') == 1",
        "size(event.data.missing) == 0 && size(event.data.nothing) == 0",
        "uppercase(event.data.text) == 'HI' && lowercase('URGENT') == 'urgent'",
        "'aé'.upperAscii() == 'Aé' && 'AÉ'.lowerAscii() == 'aÉ' && ' a '.trim() == 'a'",
        "b64decode('aGkgdGhlcmUh') == 'hi there!'",
        "json_parse(b64decode(event.data.encoded)).nested.data == 'yea'",
        # conversions
        "int(async.data.status) == 200 && int(9.9) == 9 && int('-4') == -4 && uint('4') == 4u",
        "double('1.5') == 1.5 && string(9) == '9' && string(true) == 'true' && bool('true')",
        "bytes('a') == b'a' && string(b'a') == 'a' && dyn(1) == 1",
        "type(event.data.text) == string && type(1) == int && type(null) == null_type && type(int) == type",
        # time
        "date(event.data.from) + duration('6h35m10s') == date('2020-01-01T18:35:10')",
        "date('2020-01-01') < now() && date('Wed, 01 Jan 2020 00:00:00 GMT') == date('2020-01-01')",
        "date(1577836800) == date('2020-01-01') && date(1577836800000) == date('2020-01-01T00:00:00Z')",
        "now_plus('24h') > now() && now_minus('1d') < now() && now_plus('1h') - now() == duration('3600s')",
        "now() == timestamp('2026-03-01T12:00:00Z') && timestamp(0) < now()",
        "duration('-90s') < duration('1m') && -duration('1m') == duration('-60s')",
        "timestamp('2020-02-03T04:05:06.007Z').getFullYear() == 2020",
        "timestamp('2020-02-03T04:05:06.007Z').getMonth() == 1",
        "timestamp('2020-02-03T04:05:06.007Z').getHours('+02:30') == 6",
        "timestamp('2020-02-03T04:05:06.007Z').getHours('America/New_York') == 23",
        "duration('90m').getHours() == 1 && duration('1500ms').getMilliseconds() == 500",
        # layout and comments
        "event.data.int == 9 && // the rest\n  event.data.text == 'hi'",
    ],
)
def test_expression_matches(expression: str) -> None:
    assert matches(expression)


@pytest.mark.parametrize(
    "expression",
    [
        'event.data.missing == "foo"',
        "event.data.missing == 0",
        "event.data.missing != null",
        "event.data.missing == async.data.missing",
        "event.data.text == null",
        "event.data.nothing == 0",
        "event.data.missing",
        "!event.data.missing",  # neither true nor false
        "!event.data.text",
        "event.data.missing.contains('x')",
        "event.data.text.contains(event.data.missing)",
        "event.data.int.contains('9')",
        "event.data.missing.exists(x, x == 'a')",
        "event.data.missing.all(x, x == 'a')",
        "event.data.text.exists(x, true)",
        "event.data.missing in ['a']",
        "'a' in event.data.missing",
        "event.data.text < 5",
        "event.data.map < event.data.same",
        # a truthy value that is not true does not match
        "event.data.text",
        "event.data.int",
        "event.data.yes && event.data.text",
        # what has no result
        "1 / 0 == 1 / 0",
        "5 % 0 == 0",
        "9223372036854775807 + 1 > 0",
        "json_parse('{') == null && false",
        "date('soon') > now()",
        "timestamp('2020-01-01T00:00:00Z').getHours('Nowhere') == 0",
    ],
)
def test_expression_does_not_match(expression: str) -> None:
    assert not matches(expression)


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("event.data.missing < 5", True),
        ("event.data.missing <= 5", True),
        ("event.data.missing > 5", False),
        ("event.data.missing >= 5", False),
        ("5 < event.data.missing", False),
        ("5 <= event.data.missing", False),
        ("5 > event.data.missing", True),
        ("event.data.int >= event.data.missing", True),
        ("null < 5", True),
        ("5 < null", False),
        ("null > 0", False),
        ("null <= 0", True),
        ("null >= 1", False),
        ("null < 0.5", True),
        ('null < "foo"', True),
        ('"foo" < null', False),
        ("event.data.double > null && event.data.int > null", True),
        ("event.data.yes > null", False),
        ("null <= null", False),
    ],
)
def test_order_of_missing_fields_and_null(expression: str, holds: bool) -> None:
    """A missing value is less than any other; null equals the zero of the other side's type."""
    assert matches(expression) is holds


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("event.data.text", "hi"),
        ("event.name", "shop/order.placed"),
        ("event.ts", 1_774_512_121_538),
        ("5 + 4", 9),
        ("event.data.int + 0.5", 9.5),
        ("-5 / 2", -2),
        ("-5 % 3", -2),
        ("event.data.whole % 3", 1),
        ("5.0 / 2", 2.5),
        ("-event.data.int", -9),
        ("-9223372036854775808", -(2**63)),
        ("0xff + 1e2 + .5", 355.5),
        ("event.data.missing", None),
        ("event.data.nothing", None),
        ("event.data.missing - 1", None),
        ("lowercase(event.data.missing)", None),
        ("1.0 / 0.0", None),
        # + joins
        ("event.data.text + '-' + event.data.whole", "hi-4"),
        (
            "event.data.text + '-' + event.data.double + '-' + event.data.yes + '-' + event.data.list"
            " + '-' + event.data.map + '-' + event.data.missing",
            "hi-9.5-true-[3 ok? true]-map[n:1 name:x nothing:<nil>]-",
        ),
        ("event.data.missing + event.data.text", "hi"),
        ("event.data.text + event.data.nothing", "hi"),
        ("event.data.missing + event.data.missing", None),
        ("event.data.yes + event.data.yes", None),
        ("[1] + ['a', null]", [1, "a", None]),
        ("'n' + 1000000.0 + ' ' + 1e21 + ' ' + 0.1", "n1000000 1e+21 0.1"),
        # || and && give values
        ("event.data.missing || event.data.text", "hi"),
        ("event.data.text || event.data.missing", "hi"),
        ("event.data.empty || event.data.zero || event.data.nothing || 'last'", "last"),
        ("event.data.missing || event.data.other", None),
        ("event.data.missing || false", False),
        ("event.data.none || 'x'", []),
        ("event.data.text && event.data.double", 9.5),
        ("event.data.empty && event.data.text", ""),
        ("event.data.text ? 1 : 2", 1),
        # lists and maps
        ("event.data.tags.map(x, x + '!')", ["a!", "b!", "c!"]),
        ("[1, 2, 3].map(x, x > 1, x * 2)", [4, 6]),
        ("event.data.tags.filter(x, x != 'b')", ["a", "c"]),
        ("{'a': event.data.int, 'b': event.data.missing,}", {"a": 9, "b": None}),
        ("event.data.rows.map(row, row.missing)", [None, None]),
        # times are text
        ("now_plus('1h')", "2026-03-01T13:00:00Z"),
        ("duration('90s')", "90s"),
        ("duration('1ms') + 'x'", "0.001sx"),
        ("type(1)", "int"),
        ("b'abc'", "abc"),
    ],
)
def test_expression_evaluates_to(expression: str, expected: Any) -> None:
    result = value(expression)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("literal", "text"),
    [
        (r"'\n\t\\\"'", '\n\t\\"'),
        (r'"\'" + "\u00e9\U0001F600\x41\101"', "'é😀AA"),
        (r"'\d+\w'", r"\d+\w"),
        (r"""r'\n' + R"\w\" """, "\\n\\w\\"),
        ('"""a "quoted"\nline"""', 'a "quoted"\nline'),
        ("'''it's'''", "it's"),
        ("''", ""),
        ('""""""', ""),
    ],
)
def test_string_literals_are_unescaped(literal: str, text: str) -> None:
    assert value(literal) == text


@pytest.mark.parametrize(
    ("expression", "position", "reason"),
    [
        ("event.data.id ==", None, "ends too early"),
        ("", None, "ends too early"),
        ("event.data.id = 1", (1, 15), "unexpected '='"),
        ("event.data.id == 'a", (1, 18), "not closed"),
        ("event.data.id\n  == == 1", (2, 6), "unexpected '=='"),
        ("steps.a == 1", (1, 1), "unknown name 'steps'"),
        ("event.data.map(x, y)", (1, 19), "unknown name 'y'"),
        ("event.data.tags.exists(x, true) && x", (1, 36), "unknown name 'x'"),
        ("nope(1)", (1, 1), "no function 'nope'"),
        ("event.data.id.lowercase()", (1, 15), "called like lowercase(x)"),
        ("contains('a', 'b')", (1, 1), "called like x.contains"),
        ("size()", (1, 1), "takes 1 arguments, not 0"),
        ("'a'.contains()", (1, 5), "takes 1 arguments, not 0"),
        ("event.data.list.exists(1, true)", (1, 17), "takes a variable"),
        ("has(event)", (1, 1), "has() takes one field"),
        ("event.data.id.matches('(')", (1, 15), "not an RE2 expression"),
        ("event.data.id.matches('(a)\\\\1')", (1, 15), "not an RE2 expression"),
        ("9223372036854775808", None, "64 bits"),
        ("99999999999999999999999999999999999", (1, 1), "64 bits"),
        (r"'\ud800'", (1, 1), "not a Unicode character"),
    ],
)
def test_invalid_expression_is_refused(expression: str, position: tuple[int, int] | None, reason: str) -> None:
    with pytest.raises(ExpressionInvalidError) as caught:
        compile_expression(expression)
    assert caught.value.position == position
    assert reason in str(caught.value)
    assert f"`{expression}`" in str(caught.value)


def test_the_time_is_that_of_the_evaluation() -> None:
    expression = compile_expression("now() > date('2020-01-01') && now() == now()")
    assert expression.matches({}, now=1_767_225_600_000)
    assert not expression.matches({}, now=1_546_300_800_000)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("event.total > 1", "event.data.total"),
        ("event.data.id == async.order.id", "async.data.order"),
        ("async['order'] == 1", "async.data.order"),
        ("has(event.total)", "event.data.total"),
        ("event.data.items.exists(i, i == event.item)", "event.data.item"),
        ("event.name + event.id", None),
        ("event.user.id == async.user.id && event.ts < 5 && event.v == '1'", None),
        ("event.data.items.exists(event, event.total > 1)", None),
        ("event['data'].total > 1", None),
    ],
)
def test_a_field_that_no_event_has_is_noticed(text: str, field: str | None) -> None:
    found = compile_expression(text).missing_field
    assert found is None if field is None else found is not None and found.endswith(f"write {field}")


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
