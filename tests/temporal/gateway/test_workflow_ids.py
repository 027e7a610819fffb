"""Workflow ids that are made from the input by a template: different values give different ids."""

import uuid
from dataclasses import dataclass

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from temporalio import workflow

from durably.temporal import TemporalSettingsError
from durably.temporal.gateway import expose
from durably.temporal.gateway.exposure import Exposure


@dataclass
class Parcel:
    shop: str
    order: str


@workflow.defn
class ParcelWorkflow:
    @workflow.run
    async def run(self, parcel: Parcel) -> None: ...


def exposed(template: str) -> Exposure:
    return expose(ParcelWorkflow, id=template, owner=str)


def made(exposure: Exposure, owner: str, shop: str, order: str) -> str:
    assert exposure.id is not None
    return exposure.id(Parcel(shop, order), owner, owner)


UUID = "550e8400-e29b-41d4-a716-446655440000"
TEMPLATES = ["{principal}-{shop}-{order}", "a~{order}~{principal}-b-{shop}!c", "{shop}--{principal}_x_{order}{{}}"]
PARTS = ["-", "~", "!", "_", "x", "2D", "7E", "~2D", "b", "--", "a1", UUID, UUID[:8], UUID[8:], "é", "{"]
TEXTS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("".join)
VALUES = st.tuples(TEXTS, TEXTS, TEXTS)


@pytest.mark.parametrize("template", TEMPLATES)
@given(values=VALUES, others=VALUES)
@example(values=("a-b", "c", "d"), others=("a", "b-c", "d"))
@example(values=("a", "b-", "c"), others=("a", "b", "-c"))
@example(values=(UUID, "a", "b"), others=(UUID[:8], UUID[9:] + "-a", "b"))
@example(values=("a~2Db", "c", "d"), others=("a-b", "c", "d"))
def test_different_values_give_different_ids(
    template: str, values: tuple[str, str, str], others: tuple[str, str, str]
) -> None:
    assume(values != others)
    exposure = exposed(template)
    assert made(exposure, *values) != made(exposure, *others)


def test_ids_of_two_principals_do_not_collide() -> None:
    exposure = expose(ParcelWorkflow, id="{principal}-{order}", owner=str)
    assert made(exposure, "a-b", "", "c") == "a~2Db-c"
    assert made(exposure, "a", "", "b-c") == "a-b-c"


def test_ordinary_ids_are_the_plain_text() -> None:
    exposure = exposed("order-{principal}-{order}")
    for owner, order in (("ada", "7"), ("7", str(uuid.uuid4())), (UUID, "o-7"), ("ada@example.com", "2026_07")):
        assert made(exposure, owner, "", order) == f"order-{owner}-{order}"
    assert made(exposed("{shop}"), "ada", "a~-b", "") == "a~-b"


@pytest.mark.parametrize(
    ("template", "words"),
    [("{principal}{order}", "nothing between"), ("{principal}x1{order}", "only 'x1' between")],
    ids=["nothing", "letters"],
)
def test_fields_without_a_separator_are_refused(template: str, words: str) -> None:
    with pytest.raises(TemporalSettingsError, match=words):
        exposed(template)
