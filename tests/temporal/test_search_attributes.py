"""Search attributes that exposures declare by key: missing ones are found when a process connects."""

import json
import logging
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal import Temporal, TemporalSettingsError, namespace
from durably.temporal.gateway import Gateway, expose

from ..waiting import eventually
from .gateway.gateway_client import ask
from .workflows import OrderWorkflow, SleepingWorkflow

KNOWN, NUMBER = SearchAttributeKey.for_keyword("OwnKeyword"), SearchAttributeKey.for_float("OwnNumber")
DOUBLE = IndexedValueType.INDEXED_VALUE_TYPE_DOUBLE


def a_key(kind: str = "keyword") -> SearchAttributeKey[Any]:
    key: SearchAttributeKey[Any] = getattr(SearchAttributeKey, f"for_{kind}")(f"Own{uuid.uuid4().hex[:12]}")
    return key


def gateway_with(temporal: Temporal, *keys: SearchAttributeKey[Any]) -> Gateway:
    exposed = expose(SleepingWorkflow, search_attributes={key: lambda _: "x" for key in keys})
    return Gateway(temporal, [exposed], allow_anonymous=True)


async def register_known(temporal: Temporal) -> None:
    """The same attributes in each test, because a development server has room for few of each type."""
    attributes = {KNOWN.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD, NUMBER.name: DOUBLE}
    await namespace.register(await temporal.client(), attributes, timedelta(seconds=10))


def wait_for_log(caplog: pytest.LogCaptureFixture, *words: str) -> list[logging.LogRecord]:
    """The check is made in the background."""
    eventually(lambda: caplog.text, f"{words} are logged", is_right=lambda text: all(word in text for word in words))
    return [record for record in caplog.records if record.name == "durably.temporal"]


@pytest.mark.parametrize("order", ["gateway before the connection", "connection before the gateway"])
async def test_unregistered_attributes_are_logged_when_a_process_connects(
    temporal: Temporal, caplog: pytest.LogCaptureFixture, order: str
) -> None:
    known, missing, other_type = KNOWN, a_key("int"), SearchAttributeKey.for_keyword(NUMBER.name)
    await register_known(temporal)
    own = Temporal(temporal.settings.address, task_queue="orders")
    if order.startswith("connection"):
        await own.client()
        gateway_with(own, known, missing, other_type)
    else:
        gateway_with(own, known, missing, other_type)
        assert caplog.records == []
        async with own.lifespan():  # No request is needed.
            wait_for_log(caplog, missing.name)
    errors = wait_for_log(caplog, missing.name, other_type.name)
    assert {record.levelname for record in errors} == {"ERROR"}
    command = f"temporal operator search-attribute create --namespace default --name {missing.name} --type Int"
    assert f"expose(SleepingWorkflow) sets the search attribute {missing.name}" in caplog.text
    assert command in caplog.text
    assert f"sets the search attribute {other_type.name} as Keyword, and the namespace default has it as Double" in (
        caplog.text
    )
    assert known.name not in caplog.text
    assert len(errors) == 2


async def test_a_server_that_does_not_list_them_is_a_warning(
    temporal: Temporal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Temporal(temporal.settings.address, task_queue="orders")
    client = await own.client()

    async def refuse(*args: Any, **options: Any) -> Any:
        raise RPCError("Request unauthorized.", RPCStatusCode.PERMISSION_DENIED, b"")

    monkeypatch.setattr(client.operator_service, "list_search_attributes", refuse)
    gateway_with(own, key := a_key())
    [warning] = wait_for_log(caplog, key.name)
    assert (warning.levelname, "PERMISSION_DENIED" in warning.getMessage()) == ("WARNING", True)


async def test_a_server_that_restarts_during_a_registration_refuses_nothing(
    temporal: Temporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await Temporal(temporal.settings.address).client()

    async def break_off(*args: Any, **options: Any) -> Any:
        raise RPCError("transport error", RPCStatusCode.UNKNOWN, b"")

    monkeypatch.setattr(client.operator_service, "list_search_attributes", break_off)
    with pytest.raises(RPCError, match="transport error"):
        await namespace.register(client, {KNOWN.name: namespace.KEYWORD}, timedelta(seconds=10))


async def test_values_are_made_by_key(temporal: Temporal, caplog: pytest.LogCaptureFixture) -> None:
    await register_known(temporal)
    functions: dict[SearchAttributeKey[Any], Callable[..., Any]] = {
        KNOWN: lambda order, user: f"{user} {order.order_id}",
        NUMBER: lambda order: order.amount,
        a_key(): lambda order: None,
    }
    exposed = expose(OrderWorkflow, name="flows", search_attributes=functions)
    gateway = Gateway(temporal, [exposed], authorize=lambda action: True)
    order = {"order_id": uuid.uuid4().hex, "amount": 3}
    # A server takes some seconds until it accepts an attribute that was registered.
    end = time.monotonic() + 30
    while (started := await ask(gateway, "ada", "POST", "flows", order)).status != 202:
        assert time.monotonic() < end, json.dumps(started.json)
    described = await ask(gateway, "ada", "GET", f"flows/{started.json['workflow_id']}")
    # Once a worker has the workflow, the server adds its own attributes.
    stored = {name: value for name, value in described.json["search_attributes"].items() if name.startswith("Own")}
    assert stored == {KNOWN.name: f"ada {order['order_id']}", NUMBER.name: 3.0}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"CustomerId": lambda _: "x"}, "is a mapping of keys, such as SearchAttributeKey"),
        ({a_key(): lambda *values: "x"}, r"takes \*values"),
    ],
    ids=["text", "variadic"],
)
def test_a_wrong_declaration_is_named(given: Any, words: str) -> None:
    with pytest.raises(TemporalSettingsError, match=words):
        expose(SleepingWorkflow, search_attributes=given)
