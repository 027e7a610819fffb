"""The number of our functions that a call over HTTP passes, with one memo and one new step."""

import io
import json
from collections.abc import Callable
from typing import Any

import fastapi
import flask
import pytest
from benchmarks.calls import make_call

import durably.fast_api
import durably.flask
from durably import Client, Context, ContextSync, TriggerEvent

from ..paths import CallPath, Tracer

_MAX_FUNCTIONS = 70
_MAX_MODULES = 14
_CALLS = 5
"""The first ones start threads, and fill caches; what watches the event loop by time is in some."""

TRIGGER = TriggerEvent(event="go")
PATH = "/api/inngest"


def first() -> int:
    return 1


def second() -> int:
    return 2


@pytest.fixture
def client() -> Client:
    return Client(app_id="benchmark", is_production=False)


def check(paths: list[CallPath], body: bytes) -> None:
    path = min(paths, key=lambda path: len(path.calls))
    (op,) = json.loads(body)
    assert (op["op"], op["data"]) == ("StepRun", 2)
    assert len(path.calls) <= _MAX_FUNCTIONS, str(path)
    assert len(path.modules) <= _MAX_MODULES, str(path)


async def test_call_of_async_function_in_fast_api_passes_few_functions(client: Client) -> None:
    @client.create_function(fn_id="count", trigger=TRIGGER)
    async def count(ctx: Context) -> int:
        await ctx.step.run("step-0", first)
        return await ctx.step.run("step-1", second)

    app = fastapi.FastAPI()
    durably.fast_api.serve(app, client, [count])
    call = make_call("count", 1)
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": PATH,
        "root_path": "",
        "query_string": call.query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in call.headers.items()],
    }
    sent: list[Any] = []
    paths: list[CallPath] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": call.body}

    async def send(message: Any) -> None:
        sent.append(message)

    with Tracer() as tracer:
        for _ in range(_CALLS):
            sent.clear()
            tracer.start()
            await app(dict(scope), receive, send)
            paths.append(tracer.stop())
    check(paths, sent[-1]["body"])


def test_call_of_sync_function_in_flask_passes_few_functions(client: Client) -> None:
    @client.create_function(fn_id="count", trigger=TRIGGER)
    def count(ctx: ContextSync) -> int:
        ctx.step.run("step-0", first)
        return ctx.step.run("step-1", second)

    app = flask.Flask(__name__)
    durably.flask.serve(app, client, [count])
    call = make_call("count", 1)
    environ = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": PATH,
        "QUERY_STRING": call.query,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(call.body)),
        "wsgi.url_scheme": "http",
    }
    paths: list[CallPath] = []
    with Tracer() as tracer:
        for _ in range(_CALLS):
            tracer.start()
            body = b"".join(app({**environ, "wsgi.input": io.BytesIO(call.body)}, _start_response))
            paths.append(tracer.stop())
    check(paths, body)


def _start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
    assert status.startswith("206")
    return lambda _: None
