"""Several calls of ``serve`` with one app: one for each path."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastapi
import fastapi.testclient
import flask
import pytest
import tornado.web

import durably.digital_ocean
import durably.django
import durably.fast_api
import durably.flask
import durably.tornado
from durably import Client, Context, Embedded, Function, TemporalEngine, TriggerEvent
from durably.errors import FunctionConfigInvalidError

Serve = Callable[..., Any]


def make(client: Client, fn_id: str) -> Function[Any]:
    @client.create_function(fn_id=fn_id, trigger=TriggerEvent(event=fn_id))
    async def function(ctx: Context) -> None: ...

    return function


@pytest.fixture(params=["fast_api", "flask", "tornado", "django", "digital_ocean"])
def serve(request: pytest.FixtureRequest) -> Serve:
    """The framework's ``serve``, with one app."""
    if request.param == "django":
        return durably.django.serve
    if request.param == "digital_ocean":
        return durably.digital_ocean.serve
    adapter: Any = {"fast_api": durably.fast_api, "flask": durably.flask, "tornado": durably.tornado}[request.param]
    makers: dict[str, Callable[[], Any]] = {
        "fast_api": fastapi.FastAPI,
        "flask": lambda: flask.Flask(__name__),
        "tornado": tornado.web.Application,
    }
    app = makers[request.param]()
    return lambda *args, **options: adapter.serve(app, *args, **options)


@pytest.fixture(params=["over HTTP", "Embedded", "TemporalEngine"])
def client(request: pytest.FixtureRequest, serve: Serve, tmp_path: Path) -> Client:
    if request.param != "over HTTP" and serve is durably.digital_ocean.serve:
        pytest.skip("it has no engine in process")
    engines: dict[str, Callable[[], Any]] = {
        "over HTTP": lambda: None,
        "Embedded": lambda: Embedded(tmp_path / "durably.db"),
        "TemporalEngine": lambda: TemporalEngine("localhost:7233"),
    }
    return Client(app_id="shop", is_production=False, engine=engines[request.param]())


def test_second_call_for_a_path_is_refused(serve: Serve, client: Client) -> None:
    orders, invoices = make(client, "orders"), make(client, "invoices")
    serve(client, [orders])
    with pytest.raises(FunctionConfigInvalidError, match=r"'shop-orders', and then with 'shop-invoices'.* one call"):
        serve(client, [invoices])
    if client.engine is not None:
        assert client.engine.function_ids == ["shop-orders"]  # type: ignore[union-attr]


def test_second_call_with_functions_of_the_first_one_is_refused(serve: Serve, client: Client) -> None:
    orders, invoices = make(client, "orders"), make(client, "invoices")
    serve(client, [orders])
    with pytest.raises(FunctionConfigInvalidError, match="give all functions to one call"):
        serve(client, [orders, invoices])


def test_two_clients_with_two_paths_are_served(serve: Serve, client: Client) -> None:
    other = Client(app_id="other", is_production=False)
    serve(client, [make(client, "orders")])
    serve(other, [make(other, "invoices")], serve_path="/other")


@pytest.mark.parametrize("serve", ["fast_api", "flask", "tornado"], indirect=True)
def test_another_client_with_the_same_path_is_refused(serve: Serve, client: Client) -> None:
    other = Client(app_id="other", is_production=False)
    serve(client, [make(client, "orders")])
    with pytest.raises(FunctionConfigInvalidError, match="serve_path"):
        serve(other, [make(other, "invoices")])


def test_call_of_a_module_that_is_loaded_again_is_accepted(serve: Serve, client: Client) -> None:
    orders = make(client, "orders")
    serve(client, [orders])
    serve(client, [orders])
    serve(client, [make(client, "orders"), make(client, "invoices")])


def test_functions_of_a_module_that_was_loaded_again_are_served() -> None:
    client = Client(app_id="shop", is_production=False)
    for app, adapter, ask in (
        (
            fastapi.FastAPI(),
            durably.fast_api,
            lambda app: fastapi.testclient.TestClient(app).get("/api/inngest").json(),
        ),
        (flask.Flask(__name__), durably.flask, lambda app: app.test_client().get("/api/inngest").get_json()),
    ):
        adapter.serve(app, client, [make(client, "orders")])  # type: ignore[attr-defined]
        adapter.serve(app, client, [make(client, "orders"), make(client, "invoices")])  # type: ignore[attr-defined]
        assert ask(app)["function_count"] == 2  # type: ignore[no-untyped-call]


def test_engine_in_process_warns_of_functions_that_another_path_replaces(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client, app = (
        Client(app_id="shop", is_production=False, engine=Embedded(tmp_path / "durably.db")),
        fastapi.FastAPI(),
    )
    durably.fast_api.serve(app, client, [make(client, "orders")])
    durably.fast_api.serve(app, client, [make(client, "invoices")], serve_path="/other")
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "no longer calls 'shop-orders'" in warning.getMessage()
