"""Several calls of ``serve`` with one app: one for each path."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastapi
import fastapi.testclient
import flask
import pytest
import quart
import sanic
import tornado.web
from aiohttp import web

import durably.aiohttp
import durably.aws_lambda
import durably.digital_ocean
import durably.django
import durably.fast_api
import durably.flask
import durably.google_cloud
import durably.litestar
import durably.quart
import durably.sanic
import durably.tornado
from durably import Client, Context, Embedded, Function, TemporalEngine, TriggerEvent
from durably.errors import FunctionConfigInvalidError

Serve = Callable[..., Any]


def make(client: Client, fn_id: str) -> Function[Any]:
    @client.create_function(fn_id=fn_id, trigger=TriggerEvent(event=fn_id))
    async def function(ctx: Context) -> None: ...

    return function


sanic.Sanic.test_mode = True  # Each test has an app of the same name.
OF_APPS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "fast_api": (durably.fast_api, fastapi.FastAPI),
    "flask": (durably.flask, lambda: flask.Flask(__name__)),
    "tornado": (durably.tornado, tornado.web.Application),
    "quart": (durably.quart, lambda: quart.Quart(__name__)),
    "aiohttp": (durably.aiohttp, web.Application),
    "sanic": (durably.sanic, lambda: sanic.Sanic("twice", configure_logging=False)),
}
WITHOUT_APPS: dict[str, Any] = {
    "django": durably.django,
    "litestar": durably.litestar,
    "digital_ocean": durably.digital_ocean,
    "aws_lambda": durably.aws_lambda,
    "google_cloud": durably.google_cloud,
}


@pytest.fixture(params=[*OF_APPS, *WITHOUT_APPS])
def serve(request: pytest.FixtureRequest) -> Serve:
    """The framework's ``serve``, with one app."""
    if request.param in WITHOUT_APPS:
        return WITHOUT_APPS[request.param].serve  # type: ignore[no-any-return]
    adapter, make_app = OF_APPS[request.param]
    app = make_app()
    return lambda *args, **options: adapter.serve(app, *args, **options)


@pytest.fixture(params=["over HTTP", "Embedded", "TemporalEngine"])
def client(request: pytest.FixtureRequest, serve: Serve, tmp_path: Path) -> Client:
    platforms: list[Any] = [durably.digital_ocean, durably.aws_lambda, durably.google_cloud]
    if request.param != "over HTTP" and serve in [platform.serve for platform in platforms]:
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


@pytest.mark.parametrize("serve", OF_APPS, indirect=True)
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
