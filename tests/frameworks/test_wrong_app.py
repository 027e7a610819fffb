"""``serve`` with an app of another framework names the adapter that serves it."""

from collections.abc import Callable
from typing import Any

import django.core.handlers.asgi
import django.core.handlers.wsgi
import fastapi
import flask
import pytest
import tornado.web
from starlette.applications import Starlette

import durably
import durably.digital_ocean
import durably.django
import durably.fast_api
import durably.flask
import durably.tornado
from durably.errors import FunctionConfigInvalidError

client = durably.Client(app_id="app", is_production=False)


@client.create_function(fn_id="function", trigger=durably.TriggerEvent(event="never"))
async def function(ctx: durably.Context) -> None: ...


APPS: dict[str, Callable[[], Any]] = {
    "durably.fast_api": fastapi.FastAPI,
    "durably.flask": lambda: flask.Flask(__name__),
    "durably.tornado": tornado.web.Application,
}
ADAPTERS: dict[str, Any] = {
    "durably.fast_api": durably.fast_api.serve,
    "durably.flask": durably.flask.serve,
    "durably.tornado": durably.tornado.serve,
    "durably.django": durably.django.serve,
    "durably.digital_ocean": durably.digital_ocean.serve,
}
WRONG = [(adapter, right) for adapter in ADAPTERS for right in APPS if adapter != right]


@pytest.mark.parametrize(("adapter", "right"), WRONG)
def test_an_app_of_another_framework(adapter: str, right: str) -> None:
    with pytest.raises(FunctionConfigInvalidError) as raised:
        ADAPTERS[adapter](APPS[right](), client, [function])
    assert f"{adapter}.serve was given an app of" in str(raised.value)
    assert f"{right}.serve(app, client, functions)" in str(raised.value)


@pytest.mark.parametrize("adapter", [*APPS, "durably.digital_ocean"])
@pytest.mark.parametrize("handler", [django.core.handlers.asgi.ASGIHandler, django.core.handlers.wsgi.WSGIHandler])
def test_django_app_given_to_another_adapter_is_named(adapter: str, handler: type[Any]) -> None:
    app = handler.__new__(handler)  # without loading a project's settings
    with pytest.raises(
        FunctionConfigInvalidError, match=r"an app of Django; .* urlpatterns.append\(durably.django.serve\("
    ):
        ADAPTERS[adapter](app, client, [function])


@pytest.mark.parametrize("adapter", APPS)
def test_a_client_in_place_of_the_app(adapter: str) -> None:
    with pytest.raises(FunctionConfigInvalidError, match=r"takes the app first: .*serve\(app, client, functions\)"):
        ADAPTERS[adapter](client, [function])


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_object_that_is_not_an_app_is_refused(adapter: str) -> None:
    with pytest.raises(FunctionConfigInvalidError, match=f"{adapter}.serve does not take Blueprint first"):
        ADAPTERS[adapter](flask.Blueprint("name", __name__), client, [function])


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_nothing_in_place_of_the_app(adapter: str) -> None:
    with pytest.raises(FunctionConfigInvalidError, match="does not take NoneType first"):
        ADAPTERS[adapter](None, client, [function])


@pytest.mark.parametrize("functions", ["", {}, {"f": function}, b"", 5])
def test_functions_that_are_not_a_list_are_refused(functions: Any) -> None:
    with pytest.raises(FunctionConfigInvalidError, match="serve takes a list of functions"):
        durably.flask.serve(flask.Flask(__name__), client, functions)


def test_the_right_apps_are_served() -> None:
    for adapter, make in APPS.items():
        ADAPTERS[adapter](make(), client, [function])
        ADAPTERS[adapter](app=make(), client=client, functions=[function])
    durably.fast_api.serve(Starlette(), client, [function])  # type: ignore[arg-type]
    app = flask.Flask(__name__)
    with app.app_context():
        durably.flask.serve(flask.current_app, client, [function])  # type: ignore[arg-type]
    assert durably.django.serve(client, [function]).pattern
    assert callable(durably.digital_ocean.serve(client, [function]))
