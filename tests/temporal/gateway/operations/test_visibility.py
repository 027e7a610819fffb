"""Visibility queries: the grammar, the query for the server, and that no query reveals other workflows."""

import uuid
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes

from durably.io.background_loop import get_background_loop
from durably.temporal import Temporal
from durably.temporal.gateway import Gateway, expose
from durably.temporal.gateway.operations.visibility import MAX_DEPTH, Number, all_of, compare, parse, write
from durably.temporal.gateway.problems import Problem
from durably.temporal.namespace import search_attributes
from durably.temporal.namespace.search_attributes import OWNER_ATTRIBUTE

from ....waiting import async_eventually
from ...workflows import SleepingWorkflow
from ..gateway_client import Answer, ask

ATTACK = r"""WorkflowId = 'a\' AND WorkflowId = ') OR (WorkflowType = "{secret}" AND WorkflowId != 'x\''"""
"""Two strings for a parser without the backslash. For the server one string, and a clause outside the parentheses."""


@pytest.mark.parametrize(
    ("query", "written"),
    [
        ("WorkflowId='x'", "`WorkflowId` = 'x'"),
        ('a = "it\'s"', "`a` = 'it''s'"),
        (r"a = 'it\'s' or a = 'it''s'", "(`a` = 'it''s' OR `a` = 'it''s')"),
        (r"a = 'c:\\d' AND b = '\q'", r"(`a` = 'c:\\d' AND `b` = 'q')"),
        ('a = "say ""x"""', "`a` = 'say \"x\"'"),
        (
            "a = 1 and (b != -2.5e3 or not c in (true, 'x'))",
            "(`a` = 1 AND (`b` != -2.5e3 OR NOT (`c` IN (true, 'x'))))",
        ),
        ("a <> 1 and b <= 2 and c >= 3 and d < 4 and e > 5", None),
        ("`my own-attribute` STARTS_WITH 'x'", "`my own-attribute` STARTS_WITH 'x'"),
        ("a not starts_with 'x'", "`a` NOT STARTS_WITH 'x'"),
        ("a between '1' and '2' and b not between 3 and 4", "(`a` BETWEEN '1' AND '2' AND `b` NOT BETWEEN 3 AND 4)"),
        ("a is null or b is not null or c not in (1)", "(`a` IS NULL OR `b` IS NOT NULL OR `c` NOT IN (1))"),
        ("(((a = 'é😀')))", "`a` = 'é😀'"),
        ("Order = 1 and\n\tandroid = 2", "(`Order` = 1 AND `android` = 2)"),
    ],
    ids=str,
)
def test_a_query_is_written_again_with_our_quoting(query: str, written: str | None) -> None:
    once = write(parse(query))
    assert written is None or once == written
    assert write(parse(once)) == once


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("a = 'x' ORDER BY b", "at character 9: ORDER is not supported"),
        ("a LIKE 'x'", "at character 3: LIKE is not supported"),
        ("a = 'x' GROUP BY a", "GROUP is not supported"),
        ("a = 'x' -- b", "at character 9: unexpected '-'"),
        ("a = 'x' # b", "unexpected '#'"),
        ("a = /* b */ 'x'", "unexpected '/'"),
        ("a = 'x'; b", "unexpected ';'"),
        ("a = lower('x')", "unexpected 'lower'"),
        ("a = b", "at character 5: a string is written in quotes: 'b'"),
        ("WorkflowId=order-ada-1", "at character 12: a string is written in quotes: 'order-ada-1'"),
        ("StartTime > 2026-01-31T10:00:00Z", "a string is written in quotes: '2026-01-31T10:00:00Z'"),
        ("a = 'x' or (b starts_with c)", "at character 27: a string is written in quotes: 'c'"),
        ("'x' = a", "unexpected \"'x'\""),
        ("a = 'x", "at character 5: the ' is not closed"),
        (r"a = 'x\'", "the ' is not closed"),
        ("a = 'x' 'y'", "at character 9"),
        ("a = 0x10", "at character 5"),
        ("a = null", "unexpected 'null'"),
        ("`` = 1", "the ` is not closed"),
        ("a = 'x' OR", "ends too early"),
        ("(a = 1", "ends too early"),
        ("a = 1)", "unexpected ')'"),
        ("a in ()", "unexpected ')'"),
        (r"a = '\''", "starts or ends with a quote"),
        (r"a = 'x\0y'", "control characters"),
        ("a = 'x\x00y'", "control characters"),
        ("a = '\ud800'", "not valid Unicode"),
        ("NOT " * (MAX_DEPTH + 1) + "a = 1", "nested more than 20 levels"),
        ("a = 1 AND (b = 2 OR (" * 11 + "a = 1" + ")" * 22, "nested more than 20 levels"),
        ("a = '" + "x" * 2000 + "'", "has 2006 characters; at most 2000 are allowed"),
    ],
    ids=ascii,
)
def test_an_invalid_query_is_refused_with_the_position(query: str, reason: str) -> None:
    with pytest.raises(Problem) as raised:
        parse(query)
    assert raised.value.status == 400
    assert reason in raised.value.detail


def test_clauses_of_the_gateway_are_quoted_too() -> None:
    ours = all_of(compare("WorkflowType", "=", r"It's\x"), compare("N", ">=", Number("3")), parse("a = 1 OR b = 2"))
    assert write(ours) == r"(`WorkflowType` = 'It''s\\x' AND `N` >= 3 AND (`a` = 1 OR `b` = 2))"
    with pytest.raises(Problem, match="starts or ends with a quote"):
        compare("Owner", "=", "'ada")


class Namespace:
    """Three workflows of Ada, and others that she must not see: of another type, and of Bob."""

    def __init__(self, temporal: Temporal) -> None:
        mark = uuid.uuid4().hex
        self.temporal, self.listed, self.secret = temporal, f"Listed{mark}", f"Secret{mark}"
        self.ada, self.bob = f"ada's {mark}", f"bob's {mark}"
        self.ids = {f"{mark}-it's-{number}%_!" for number in range(3)}

        exposed = expose(SleepingWorkflow, name="listed", operations=["list"], owner=str)
        exposed = replace(exposed, definition=replace(exposed.definition, name=self.listed))
        secret = "for tests only, and long enough"
        self.gateway = Gateway(temporal, [exposed], authorize=lambda action: True, secret=secret)

    async def fill(self) -> None:
        client = await self.temporal.client()
        await search_attributes.ensure_keyword(client, OWNER_ATTRIBUTE, timedelta(seconds=10))
        key = SearchAttributeKey.for_keyword(OWNER_ATTRIBUTE)
        for workflow_id in self.ids:
            for prefix, workflow, owner in (
                ("", self.listed, self.ada),
                ("bobs-", self.listed, self.bob),
                ("secret-", self.secret, self.ada),
            ):
                attributes = TypedSearchAttributes([SearchAttributePair(key, owner)])
                await client.start_workflow(
                    workflow, id=prefix + workflow_id, task_queue="unpolled", search_attributes=attributes
                )
        both = write(parse(f"WorkflowType IN ('{self.listed}', '{self.secret}')"))
        await async_eventually(
            lambda: client.count_workflows(both), "all workflows are indexed", is_right=lambda found: found.count >= 9
        )

    async def ask(self, **query: str) -> Answer:
        return await ask(self.gateway, self.ada, "GET", "listed", **query)

    def fill_in(self, query: str) -> str:
        """A query with names of this namespace."""
        escaped = self.bob.replace("'", "\\'")
        names = {"{secret}": self.secret, "{listed}": self.listed, "{bob}": escaped, "{owner}": OWNER_ATTRIBUTE}
        for place, name in names.items():
            query = query.replace(place, name)
        return query

    async def walk(self, query: str) -> list[str] | None:
        """The ids of all pages; ``None`` for a query that is refused.

        A page that is not the last one is full: another one would reveal a row that was left out.
        """
        found: list[str] = []
        page = ""
        while True:
            answer = await self.ask(query=query, page_size="1", page=page)
            if answer.status == 400:
                assert page == "", answer.json
                return None
            assert answer.status == 200, answer.json
            assert {row["workflow"] for row in answer.json["workflows"]} <= {self.listed}
            found += [row["workflow_id"] for row in answer.json["workflows"]]
            page = answer.json.get("next_page", "")
            if not page:
                return found
            assert len(answer.json["workflows"]) == 1, "a page with a gap reveals another workflow"
            assert len(found) <= 3


@pytest.fixture(scope="module")
def namespace(temporal: Temporal) -> Namespace:
    made = Namespace(temporal)
    get_background_loop().run(made.fill())
    return made


async def test_the_attack_with_a_backslash_is_refused(namespace: Namespace) -> None:
    attack = ATTACK.format(secret=namespace.secret)
    client = await namespace.temporal.client()
    joined = f"WorkflowType = '{namespace.listed}' AND ({attack})"
    assert [row.workflow_type async for row in client.list_workflows(joined)] == [namespace.secret] * 3
    refused = await namespace.ask(query=attack, page_size="1")
    assert (refused.status, refused.json["detail"]) == (
        400,
        "the visibility query has an error at character 37: unexpected ')'",
    )


async def test_texts_in_queries_reach_the_server_unchanged(namespace: Namespace) -> None:
    for workflow_id in namespace.ids:
        escaped = workflow_id.replace("'", "\\'")
        for query in (
            f"WorkflowId = '{escaped}'",
            f'WorkflowId = "{workflow_id}"',
            f'`WorkflowId` IN ("{workflow_id}")',
        ):
            assert await namespace.walk(query) == [workflow_id]
    assert set(await namespace.walk("NOT WorkflowId STARTS_WITH 'none' AND ExecutionStatus = 'Running'") or ()) == (
        namespace.ids
    )


FRAGMENTS = [
    *(
        "'",
        '"',
        "\\",
        "`",
        "(",
        ")",
        " ",
        ",",
        ";",
        "--",
        "#",
        "/*",
        "*/",
        "\n",
        "%",
        "!",
        "é",
        "\x00",
        "\x1a",
        "1",
        "0x1",
    ),
    *(" OR ", " AND ", " NOT ", " IN ", " IS NULL", " BETWEEN ", " STARTS_WITH ", " = ", " != ", " >= ", "true", "''"),
    *("WorkflowType", "WorkflowId", "RunId", "ExecutionStatus", "StartTime", "TaskQueue", "TemporalNamespaceDivision"),
    *("'x'", '"x"', "'Running'", "'2020-01-01T00:00:00Z'", "{secret}", "'{secret}'", '"{secret}"', "{listed}"),
    *("{owner}", "'{bob}'", "{owner} = '{bob}'", ") OR ({owner} = '{bob}'", "{owner} IS NOT NULL"),
    *("WorkflowType = '{secret}'", "WorkflowId != 'x'", ") OR (WorkflowType = '{secret}'", "'a\\' AND WorkflowId = '"),
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join)
LITERALS = TEXTS.map(lambda text: "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'")
CONDITIONS = st.tuples(
    st.sampled_from(["WorkflowType", "WorkflowId", "TaskQueue", "RunId"]),
    st.sampled_from(["=", "!=", "STARTS_WITH", "NOT STARTS_WITH", ">="]),
    LITERALS,
).map(" ".join)
TREES = st.recursive(
    CONDITIONS,
    lambda inner: st.tuples(inner, st.sampled_from([" OR ", " AND NOT "]), inner).map(
        lambda parts: f"({''.join(parts)})"
    ),
    max_leaves=4,
)
FOREIGN = (
    st.just("WorkflowType = '{secret}' OR WorkflowId != ")
    | st.just("TemporalNamespaceDivision IS NULL OR RunId = ")
    | st.just("{owner} = '{bob}' OR WorkflowId != ")
)
QUERIES = TEXTS | TREES | st.tuples(FOREIGN, LITERALS).map("".join)


def check_queries(namespace: Namespace, examples: int) -> None:
    answered = 0

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(QUERIES)
    @example(ATTACK)
    @example("WorkflowId = 'x') OR (WorkflowType = '{secret}'")
    @example("WorkflowId = 'x' OR {owner} = '{bob}'")
    @example("{owner} != 'x'")
    def check(query: str) -> None:
        nonlocal answered
        found = get_background_loop().run(namespace.walk(namespace.fill_in(query)))
        answered += found is not None
        assert found is None or (len(set(found)) == len(found) and set(found) <= namespace.ids)

    check()
    assert answered > examples / 5


def test_no_query_returns_or_reveals_another_type_or_owner(namespace: Namespace) -> None:
    check_queries(namespace, 50)


@pytest.mark.soak
def test_no_query_returns_or_reveals_another_type_or_owner_in_many_tries(namespace: Namespace) -> None:
    check_queries(namespace, 5000)
