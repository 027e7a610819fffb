"""Lists: typed filters, and conditions that no value can end."""

import datetime as dt
import re
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.common import SearchAttributeKey

from durably.temporal import Temporal, namespace
from durably.temporal.gateway import FOR_OPERATORS, Gateway, expose
from durably.temporal.gateway.lists import condition
from durably.temporal.gateway.problems import Problem

from ...waiting import async_eventually
from ..workflows import OrderWorkflow, SleepingWorkflow
from .gateway_client import ask

NOON = dt.datetime(2026, 7, 1, 12, tzinfo=dt.UTC)
WRITTEN = [
    ("Shop", "x", "`Shop` = 'x'"),
    ("Shop", "it's", "`Shop` = 'it''s'"),
    ("Shop", "a\\' OR 1=1", "`Shop` = 'a\\\\'' OR 1=1'"),
    ("Count", 7, "`Count` = 7"),
    ("Amount", 1.5, "`Amount` = 1.5"),
    ("IsNew", True, "`IsNew` = true"),
    ("Due", NOON, "`Due` = '2026-07-01T12:00:00Z'"),
    ("Due", NOON.astimezone(dt.timezone(dt.timedelta(hours=2))), "`Due` = '2026-07-01T12:00:00Z'"),
]


@pytest.mark.parametrize(("attribute", "value", "written"), WRITTEN)
def test_a_condition_has_the_value_by_its_type(attribute: str, value: Any, written: str) -> None:
    assert condition(attribute, "=", value) == written


@given(st.text() | st.text(alphabet="'\\\"` OR=1"))
def test_a_value_cannot_end_its_condition(value: str) -> None:
    try:
        written = condition("Shop", "=", value)
    except Problem:
        assert re.search(r"[\x00-\x1f\x7f]", value) or "'" in (value[:1], value[-1:])
        return
    found = re.fullmatch(r"`Shop` = '((?:[^'\\]|''|\\.)*)'", written, re.DOTALL)
    assert found is not None
    assert re.sub(r"''|\\(.)", lambda part: part[1] or "'", found[1], flags=re.DOTALL) == value


NO_UTC = dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=23)))


@pytest.mark.parametrize("value", ["a\nb", "'a", "a'", float("inf"), float("nan"), NO_UTC])
def test_a_value_that_the_server_cannot_search_is_refused(value: Any) -> None:
    with pytest.raises(Problem):
        condition("Shop", "=", value)


WRONG = [
    {"status": "odd"},
    {"started_after": "yesterday"},
    {"started_before": "2026-07-01T12:00:00"},
    {"page": "AAAA"},
    {"page_size": "0"},
    {"page_size": "501"},
    {"attribute.Count": "many"},
    {"attribute.Other": "x"},
    {"owner": "it's'"},
    {"query": "WorkflowType = 'SleepingWorkflow'"},
]


KEYS: dict[SearchAttributeKey[Any], Any] = {
    SearchAttributeKey.for_keyword("ListedShop"): "it's (so) OR 1=1",
    SearchAttributeKey.for_text("ListedText"): 'fragile "glass"',
    SearchAttributeKey.for_int("ListedCount"): 7,
    SearchAttributeKey.for_float("ListedAmount"): 1.5,
    SearchAttributeKey.for_bool("ListedIsNew"): True,
}


def orders(temporal: Temporal, **options: Any) -> Gateway:
    exposed = [
        expose(
            OrderWorkflow,
            name="orders",
            task_queue="unpolled",
            operations=FOR_OPERATORS,
            owner=str,
            staff=lambda user: user == "staff",
            search_attributes={key: lambda order, value=value: value for key, value in KEYS.items()},
        ),
        expose(SleepingWorkflow, name="flows", task_queue="unpolled", owner=str),
    ]
    return Gateway(temporal, exposed, authorize=lambda action: True, **options)


async def test_a_wrong_filter_is_a_bad_request(temporal: Temporal) -> None:
    counted = expose(
        SleepingWorkflow,
        name="flows",
        operations=FOR_OPERATORS,
        owner=str,
        search_attributes={SearchAttributeKey.for_int("Count"): lambda value: None},
    )
    gateway = Gateway(temporal, [counted], authorize=lambda action: True)
    for wrong in WRONG:
        answer = await ask(gateway, "ada", "GET", "flows", **wrong)
        assert answer.status == 400, (wrong, answer.json)


async def test_lists_have_typed_filters(temporal: Temporal) -> None:
    client = await temporal.client()
    kinds = {key.name: namespace.indexed_type(key) for key in KEYS}
    await namespace.register_and_wait(client, kinds, dt.timedelta(seconds=10))
    gateway, user = orders(temporal), uuid.uuid4().hex
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    ids = set[str]()
    for place, body in (("orders", {"order_id": "1", "amount": 1}), ("orders", {"order_id": "2", "amount": 1})):
        started = await ask(gateway, user, "POST", place, body)
        assert started.status == 202, started.json
        ids.add(started.json["workflow_id"])
    assert (await ask(gateway, user, "POST", "flows")).status == 202

    async def listed(who: str = user, **filters: str) -> set[str]:
        page = await ask(gateway, who, "GET", "orders", **filters)
        assert page.status == 200, page.json
        return {each["workflow_id"] for each in page.json["workflows"]}

    async def are_listed() -> bool:
        return await listed() == ids

    await async_eventually(are_listed, "both orders are listed")
    shown = {key.name: str(value).lower() if value is True else str(value) for key, value in KEYS.items()}
    for filters in (
        {"status": "running"},
        {"started_after": before.isoformat()},
        {"started_before": (before + dt.timedelta(hours=1)).isoformat()},
        {"owner": user},
        *({f"attribute.{name}": value} for name, value in shown.items()),
        {f"attribute.{name}": value for name, value in shown.items()},
    ):
        assert await listed(**filters) == ids, filters
        assert await listed("staff", **{"owner": user, **filters}) == ids, filters
        assert await listed("another", **filters) == set(), filters
    for filters in (
        {"status": "completed"},
        {"started_after": (before + dt.timedelta(hours=1)).isoformat()},
        {"started_before": before.isoformat()},
        {"owner": "another"},
        {"owner": "x' OR DurablyOwner != 'x"},
        {"attribute.ListedShop": "x' OR WorkflowType != 'x"},
        {"attribute.ListedCount": "8"},
        {"attribute.ListedIsNew": "false"},
    ):
        assert await listed(**filters) == set(), filters
    first = await ask(gateway, user, "GET", "orders", page_size="1", status="running")
    second = await ask(gateway, user, "GET", "orders", status="running", page=first.json["next_page"])
    found = [each["workflow_id"] for page in (first, second) for each in page.json["workflows"]]
    assert sorted(found) == sorted(ids)
