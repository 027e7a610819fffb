"""The table of operations: each has a route, a client method and an implementation, derived or checked here."""

import datetime as dt
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
import pytest

from durably.engine.api.codec import (
    EngineRefusedError,
    HttpEngine,
    HttpRequest,
    HttpResponse,
    read_arguments,
    read_result,
    write_request,
)
from durably.engine.api.http.application import create_api
from durably.engine.api.http.requests import ApiKeys
from durably.engine.api.interface import OPERATIONS, Engine
from durably.engine.api.operations import Operation, blocking, operations_of
from durably.engine.model.overview import EngineInfo
from durably.engine.model.runs import FromStep, RunStatus
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.temporal.engine import WorkflowEngine
from durably.protocol.call import CheckpointRequest, LogLine
from durably.protocol.channels import NewMessage
from durably.protocol.engine_errors import FunctionNotFoundError, NotSupportedError, RunNotFoundError
from durably.protocol.events import Event
from durably.protocol.headers import ServerKind

TIMESTAMP = dt.datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=dt.UTC)
SAMPLES: dict[str, Any] = {
    "after": 1_790_000_000_123,
    "position": 1_790_000_000_124,
    "body": b'{"name": "a"}',
    "data": {"n": 1},
    "from_step": FromStep("one", [msgspec.Raw(b'{"a":  1}')]),
    "id_suffix": "ABC",
    "is_unmatched": True,
    "limit": 7,
    "oldest": 1.5,
    "refused": 2,
    "waiting": 3,
    "messages": [NewMessage("a run", "log", msgspec.Raw(b'{"a":1}'))],
    "channels": {"a run": 3},
    "waits": False,
    "fraction": 0.5,
    "lines": [LogLine(at=TIMESTAMP, level="INFO", message="paid", step="pay", attempt=0)],
    "received_after": TIMESTAMP,
    "since": TIMESTAMP,
    "until": TIMESTAMP,
    "within": 2.5,
    "is_only": True,
    "needs_reply": False,
    "received_before": TIMESTAMP,
    "request": CheckpointRequest(run_id="r", steps=[]),
    "started_after": TIMESTAMP,
    "started_before": TIMESTAMP,
    "status": RunStatus.FAILED,
    "statuses": [RunStatus.FAILED, RunStatus.CANCELLED],
}


@pytest.mark.parametrize("engine", [SqliteEngine, WorkflowEngine])
def test_each_engine_implements_or_refuses_each_operation(engine: type[Engine]) -> None:
    of_derived = {
        "cancel_runs": "_start_cancellation",
        "count_matching_runs": "_count_selected",
        "count_runs": "_find_counts",
        "replay_runs": "_start_replay",
        "search_events": "_find_events",
        "search_runs": "_find_runs",
    }
    needed = {name for name, each in OPERATIONS.items() if not each.is_derived} | of_derived.keys()
    methods = {of_derived.get(name, name) for name in needed - engine.unsupported}
    assert [name for name in methods if getattr(engine, name) is getattr(Engine, name)] == []


def test_no_two_operations_have_one_route() -> None:
    routes = [(each.http_method, each.path) for each in OPERATIONS.values()]
    assert len(set(routes)) == len(routes)


async def test_each_operation_has_a_route(engine: SqliteEngine) -> None:
    api = create_api(engine, ApiKeys(server_kind=ServerKind.DEV))
    routes = {(route.method, route.resource.canonical) for route in api.router.routes() if route.resource}
    assert {(each.http_method, each.path) for each in OPERATIONS.values()} <= routes


@pytest.mark.parametrize("declared", OPERATIONS.values(), ids=OPERATIONS)
def test_a_server_reads_the_arguments_that_a_client_writes(declared: Operation) -> None:
    given = {argument.name: SAMPLES.get(argument.name, f"some {argument.name}/€") for argument in declared.arguments}
    assert _received(declared, write_request(declared, given, key="k")) == given


@pytest.mark.parametrize("declared", OPERATIONS.values(), ids=OPERATIONS)
def test_arguments_that_are_not_given_have_the_defaults_of_the_method(declared: Operation) -> None:
    given = {
        argument.name: SAMPLES.get(argument.name, "some") for argument in declared.arguments if argument.is_required
    }
    received = _received(declared, write_request(declared, given, key="k"))
    defaults = {argument.name: argument.default for argument in declared.arguments}
    assert {name: value for name, value in received.items() if value != defaults[name]} == given


def _received(declared: Operation, request: HttpRequest) -> dict[str, Any]:
    url = urlsplit(request.target)
    written = zip(declared.path.split("/"), url.path.split("/"), strict=True)
    path = {part[1:-1]: unquote(text) for part, text in written if part.startswith("{")}
    received = read_arguments(declared, path, dict(parse_qsl(url.query)), request.headers, request.body or b"")
    return {name: _plain(value) for name, value in received.items()}


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, msgspec.Raw) else value


async def test_an_engine_is_used_over_a_unix_socket(client: HttpEngine, engine: SqliteEngine) -> None:
    receipt = await client.receive_events(msgspec.json.encode([Event(name="a", id="mine"), Event(name="b")]))
    assert list(receipt.unmatched) == ["a", "b"]
    found = await client.list_events(limit=1)
    assert found == await engine.list_events(limit=1)
    assert found[0].event.name == "b"
    assert await client.get_event(receipt.ids[0]) == await engine.get_event(receipt.ids[0])
    assert await client.get_run("none") is None
    assert await client.run_steps("none") == []
    assert await client.list_app_functions("none") is None
    assert await client.list_functions() == []
    assert await client.run_batch("none") is None


async def test_a_client_raises_the_errors_of_the_engine(client: HttpEngine) -> None:
    with pytest.raises(FunctionNotFoundError, match="'none'"):
        await client.pause_function("none")
    with pytest.raises(RunNotFoundError):
        await client.cancel_run("none")
    with pytest.raises(EngineRefusedError, match="limit must be a whole number from 1 to 500"):
        await client.list_runs(limit=1000)


class _Smaller(Engine):
    unsupported = frozenset({"rerun", "search_runs.if_exp"})
    alternatives: ClassVar = {"rerun": "use another tool (https://example.com)"}


async def test_an_engine_refuses_what_it_does_not_offer() -> None:
    with pytest.raises(NotSupportedError, match=r"rerun.*https://example\.com"):
        await _Smaller().rerun("a")
    info = EngineInfo(kind="small", unsupported=_Smaller.unsupported)
    offered = [info.offers(name) for name in ("rerun", "rerun.from_step", "search_runs", "search_runs.if_exp")]
    assert offered == [False, False, True, False]
    decoded = read_result(OPERATIONS["describe_engine"], {}, HttpResponse(200, msgspec.json.encode({"data": info})))
    assert decoded == info


def test_unsupported_names_exist() -> None:
    names = {f"{each.name}.{argument.name}" for each in OPERATIONS.values() for argument in each.arguments}
    for name in WorkflowEngine.unsupported:
        assert name in OPERATIONS or ".".join(name.split(".")[:2]) in names


class _Larger(Engine):
    """An engine with one more operation."""

    @Operation("POST /v1/greetings/{name}", names={"times": "count"})
    async def greet(self, name: str, *, times: int = 1) -> list[str]:
        """Greetings."""
        # type: ignore[empty-body]

    greet_sync = blocking(greet)

    async def execute(self, operation: Operation, arguments: Mapping[str, Any]) -> Any:
        request = write_request(operation, arguments)
        received = _received(operation, request)
        return [f"{request.method} {request.target}"] * received.get("times", 1)

    def block(self, coroutine: Any) -> Any:
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value


async def test_an_operation_that_is_declared_has_a_request_and_a_synchronous_method() -> None:
    assert set(operations_of(_Larger)) - set(OPERATIONS) == {"greet"}
    assert await _Larger().greet("a/b", times=2) == ["POST /v1/greetings/a%2Fb"] * 2
    assert _Larger().greet_sync("you") == ["POST /v1/greetings/you"]
    with pytest.raises(TypeError):
        await _Larger().greet("a", nonsense=1)  # type: ignore[call-arg]
