"""Declarations of exposures, and errors in them."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel, Field
from temporalio import workflow
from temporalio.common import RawValue

from durably.temporal import Temporal, TemporalSettingsError
from durably.temporal.gateway import FOR_OPERATORS, FOR_OWNERS, FOR_USERS, Gateway, Operation, expose
from durably.temporal.gateway.messages import Completed, Links, answer

from ..workflows import OrderWorkflow, Pair, SleepingWorkflow, SumWorkflow


@workflow.defn
class GreetingWorkflow:
    @workflow.run
    async def run(self, name: str, times: int = 1) -> str:
        return name * times


@workflow.defn(dynamic=True)
class DynamicWorkflow:
    @workflow.run
    async def run(self, args: Sequence[RawValue]) -> None: ...


class Greeting(BaseModel):
    """Stricter than the workflow's own type hints."""

    name: str = Field(max_length=5)
    times: int = Field(1, le=3)


def test_by_default_little_is_open() -> None:
    exposed = expose(OrderWorkflow)
    assert exposed.name == "order"
    assert exposed.operations == FOR_USERS
    assert Operation.TERMINATE not in exposed.operations
    assert not exposed.signals
    assert not exposed.queries
    assert not exposed.updates
    assert expose(SumWorkflow, owner=str).operations == FOR_OWNERS == FOR_USERS | {Operation.LIST}


def test_a_gateway_needs_authorize_or_allow_anonymous() -> None:
    temporal = Temporal()
    with pytest.raises(TemporalSettingsError, match="authorize="):
        Gateway(temporal, [])
    with pytest.raises(TemporalSettingsError, match="cannot be combined"):
        Gateway(temporal, [], authorize=lambda action: True, allow_anonymous=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"allow_anonymous": "false"}, "allow_anonymous must be True or False"),
        ({"allow_anonymous": 1}, "allow_anonymous must be True or False"),
        ({"authorize": True}, "authorize must be a function"),
        ({"allow_anonymous": True, "identify": "email"}, "identify must be a function"),
    ],
)
def test_a_wrong_argument_of_a_gateway_is_named(options: dict[str, Any], words: str) -> None:
    """A string such as "false" would open the gateway to all clients."""
    with pytest.raises(TemporalSettingsError, match=words):
        Gateway(Temporal(), [], **options)


def test_two_exposures_of_one_name_are_refused() -> None:
    with pytest.raises(TemporalSettingsError, match="same name"):
        Gateway(Temporal(), [expose(SumWorkflow), expose(SumWorkflow)], allow_anonymous=True)


async def _later(user: Any) -> str:
    return str(user)


def _name_of(value: object) -> str:
    """The names of functions and classes, without addresses: they are the same in each process."""
    match value:
        case type():
            return value.__name__
        case dict():
            return " ".join(f"{name}={_name_of(option)}" for name, option in value.items())
        case list():
            return ",".join(map(_name_of, value))
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(
    ("workflow", "options", "words"),
    [
        (Pair, {}, "Pair is not a workflow"),
        (DynamicWorkflow, {}, "dynamic"),
        (OrderWorkflow, {"id": "order-{number}"}, "names number, which is not a field of"),
        (OrderWorkflow, {"id": "order"}, "must name fields"),
        (OrderWorkflow, {"id": "order-{order_id"}, "not a format string"),
        (OrderWorkflow, {"id": "{order_id.__class__}"}, "must name fields"),
        (OrderWorkflow, {"signals": ["shipp"]}, 'no signal "shipp"; it has add_note, secret, ship'),
        (OrderWorkflow, {"signals": [OrderWorkflow.state]}, "is not a named signal handler"),
        (OrderWorkflow, {"updates": [OrderWorkflow.ship]}, "is not a named update handler"),
        (OrderWorkflow, {"queries": "every"}, "as a list"),
        (OrderWorkflow, {"name": "a/b"}, "cannot be a segment of a URL"),
        (OrderWorkflow, {"operations": ["stop"]}, "stop"),
        (GreetingWorkflow, {"input": Pair}, "not a pydantic model"),
        (SumWorkflow, {"owner": _later}, "owner= of sum-of-pair is a plain function"),
        (SumWorkflow, {"owner": str, "staff": "ada"}, "staff= of sum-of-pair is a plain function"),
        (SumWorkflow, {"staff": bool}, "without owner="),
        (SumWorkflow, {"id": "{principal}"}, "needs owner="),
        (SumWorkflow, {"id": lambda a, b, c: "x"}, "takes a, b, c"),
        (SumWorkflow, {"memo": lambda value, *, user: {}}, "user"),
        (SumWorkflow, {"memo": _later}, "plain function"),
        (SumWorkflow, {"search_attributes": {"Amount": len}}, "mapping of keys"),
    ],
    ids=_name_of,
)
def test_a_wrong_declaration_is_named(workflow: type, options: dict[str, Any], words: str) -> None:
    with pytest.raises(TemporalSettingsError, match=words):
        expose(workflow, **options)


def test_one_object_is_the_body_and_several_parameters_are_its_members() -> None:
    one = expose(OrderWorkflow).run
    [order] = one.spread(one.body.parse(b'{"order_id": "a", "amount": 1}'))
    assert order.order_id == "a"
    several = expose(SumWorkflow).run
    assert several.spread(several.body.parse(b'{"pair": {"left": 1}}')) == [Pair(1), 1]
    none = expose(SleepingWorkflow).run
    assert none.spread(none.body.parse(b"")) == []
    scalar = expose(GreetingWorkflow).run
    assert scalar.spread(scalar.body.parse(b'{"name": "a"}')) == ["a", 1]


def test_an_input_model_is_stricter_than_the_type_hints() -> None:
    arguments = expose(GreetingWorkflow, input=Greeting, id="greet-{name}").run
    assert arguments.spread(arguments.body.parse(b'{"name": "a", "times": 2}')) == ["a", 2]
    with pytest.raises(ValueError, match="at most 5"):
        arguments.body.parse(b'{"name": "abcdef"}')


def test_bodies_contain_null_only_in_results() -> None:
    links = Links(self="/x", result="/x/result", events="/x/events")
    for result in (None, {"a": None}, Greeting(name="a")):
        shown = json.loads(answer(Completed[Any](workflow_id="x", result=result, links=links)).body)
        assert shown.keys() == {"workflow_id", "status", "result", "links"}
        assert shown["result"] == (result.model_dump() if isinstance(result, Greeting) else result)


@pytest.mark.parametrize(
    ("options", "is_warned"),
    [
        ({"id": "order-{order_id}"}, True),
        ({"id": lambda order: order.order_id}, True),
        ({"id": "order-{principal}-{order_id}"}, False),
        ({"id": lambda order, user: f"{user}-{order.order_id}"}, False),
        ({}, False),
        ({"id": "order-{order_id}", "signals": ()}, False),
        ({"id": "order-{order_id}", "operations": FOR_USERS}, False),
        ({"id": "order-{order_id}", "owner": None}, False),
    ],
)
def test_a_warning_names_ids_that_two_owners_can_share(
    options: dict[str, Any], is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    expose(OrderWorkflow, **{"owner": str, "signals": ["ship"], "operations": FOR_OPERATORS, **options})
    expected = ["OrderWorkflow is exposed with owner= and signal-with-start, and its id= does not contain the owner"]
    assert [each.getMessage().partition(":")[0] for each in caplog.records] == (expected if is_warned else [])
    assert all("{principal}" in each.getMessage() for each in caplog.records)
