"""The same app written once and served by either package, and the bare web frameworks they are compared with.

``durably`` and ``inngest`` share the names of their public API, so the user's code below is one text for both.
An app is a ``Sender``: a function that sends one call into the framework's ASGI or WSGI callable, in this
process, so that neither sockets nor a server's HTTP parser count.
"""

import asyncio
import importlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fastapi
import flask

from .calls import APP_ID, PATH, SIGNING_KEY, Call

BARE, DURABLY, PEER = "bare", "durably", "inngest"
FAST_API, FLASK = "FastAPI", "Flask"


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes


Send = Callable[[Call, int], Answer]
"""Send a call so many times, one after another, and return the last answer."""


def make_app(package: str, framework: str, *, is_signed: bool = False) -> Send:
    """An app of one function a kind, or, for ``BARE``, a view that reads the body and answers."""
    if framework == FAST_API:
        return _asgi_sender(_fast_api(package, is_signed))
    return _wsgi_sender(_flask(package, is_signed))


async def charge(number: int) -> dict[str, Any]:
    return {"id": f"charge-{number}", "amount": 4200 + number, "currency": "EUR", "paid": True}


def charge_sync(number: int) -> dict[str, Any]:
    return {"id": f"charge-{number}", "amount": 4200 + number, "currency": "EUR", "paid": True}


def _client(sdk: Any, is_signed: bool) -> Any:
    return sdk.Inngest(
        app_id=APP_ID,
        is_production=is_signed,
        signing_key=SIGNING_KEY if is_signed else None,
        api_base_url="http://127.0.0.1:8288",
        event_api_base_url="http://127.0.0.1:8288",
    )


def _fast_api(package: str, is_signed: bool) -> fastapi.FastAPI:
    app = fastapi.FastAPI()
    if package == BARE:

        @app.post(PATH)
        async def bare(request: fastapi.Request) -> fastapi.Response:
            await request.body()
            return fastapi.Response(b"[]", 206, {"content-type": "application/json"})

        return app
    sdk = importlib.import_module(package)
    client = _client(sdk, is_signed)
    trigger = sdk.TriggerEvent(event="benchmark/run")

    @client.create_function(fn_id="sequential", trigger=trigger)  # type: ignore[untyped-decorator]
    async def sequential(ctx: Any) -> None:
        for number in range(ctx.event.data["steps"]):
            await ctx.step.run(f"step-{number}", charge, number)

    @client.create_function(fn_id="parallel", trigger=trigger)  # type: ignore[untyped-decorator]
    async def parallel(ctx: Any) -> None:
        for number in range(ctx.event.data["steps"] - 1):
            await ctx.step.run(f"step-{number}", charge, number)
        await ctx.group.parallel(tuple(_branch(ctx, name) for name in "abc"))

    @client.create_function(fn_id="gather", trigger=trigger)  # type: ignore[untyped-decorator]
    async def gather(ctx: Any) -> None:
        for number in range(ctx.event.data["steps"] - 1):
            await ctx.step.run(f"step-{number}", charge, number)
        await asyncio.gather(*(_branch(ctx, name)() for name in "abc"))

    importlib.import_module(f"{package}.fast_api").serve(app, client, [sequential, parallel, gather])
    return app


def _branch(ctx: Any, name: str) -> Callable[[], Any]:
    return lambda: ctx.step.run(name, charge, 1)


def _flask(package: str, is_signed: bool) -> flask.Flask:
    app = flask.Flask(__name__)
    if package == BARE:

        @app.post(PATH)
        def bare() -> flask.Response:
            flask.request.get_data()
            return flask.Response(b"[]", 206, {"content-type": "application/json"})

        return app
    sdk = importlib.import_module(package)
    client = _client(sdk, is_signed)
    trigger = sdk.TriggerEvent(event="benchmark/run")

    @client.create_function(fn_id="sequential", trigger=trigger)  # type: ignore[untyped-decorator]
    def sequential(ctx: Any) -> None:
        for number in range(ctx.event.data["steps"]):
            ctx.step.run(f"step-{number}", charge_sync, number)

    @client.create_function(fn_id="parallel", trigger=trigger)  # type: ignore[untyped-decorator]
    def parallel(ctx: Any) -> None:
        for number in range(ctx.event.data["steps"] - 1):
            ctx.step.run(f"step-{number}", charge_sync, number)
        ctx.group.parallel(tuple(_branch_sync(ctx, name) for name in "abc"))

    importlib.import_module(f"{package}.flask").serve(app, client, [sequential, parallel])
    return app


def _branch_sync(ctx: Any, name: str) -> Callable[[], Any]:
    return lambda: ctx.step.run(name, charge_sync, 1)


def _asgi_sender(app: Any) -> Send:
    runner = asyncio.Runner()  # each app has its own loop: a package may change the loop that it runs on

    async def send_once(call: Call) -> Answer:
        request = {"type": "http.request", "body": call.body, "more_body": False}
        messages: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return request

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        await app(_scope(call), receive, send)
        return Answer(messages[0]["status"], b"".join(message.get("body", b"") for message in messages))

    async def send_all(call: Call, times: int) -> Answer:
        for _ in range(times - 1):
            await asyncio.create_task(send_once(call))  # a task for each request, as servers have it
        return await asyncio.create_task(send_once(call))

    return lambda call, times: runner.run(send_all(call, times))


def _scope(call: Call) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": call.query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in call.headers.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }


def _wsgi_sender(app: Any) -> Send:
    def send_once(call: Call) -> Answer:
        statuses: list[str] = []
        chunks = app(_environ(call), lambda status, headers, error=None: statuses.append(status))
        try:
            body = b"".join(chunks)
        finally:
            chunks.close()
        return Answer(int(statuses[0].split()[0]), body)

    def send_all(call: Call, times: int) -> Answer:
        for _ in range(times - 1):
            send_once(call)
        return send_once(call)

    return send_all


def _environ(call: Call) -> dict[str, Any]:
    headers = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in call.headers.items()}
    return headers | {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": PATH,
        "QUERY_STRING": call.query,
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(call.body)),
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(call.body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


def check(answer: Answer, package: str, opcodes: list[str]) -> None:
    """Make sure that what is timed does what it should. Raises ``RuntimeError`` with the answer."""
    found = [op["op"] for op in json.loads(answer.body)] if answer.status == 206 else None
    if found != ([] if package == BARE else opcodes):
        raise RuntimeError(f"{package} answered {answer.status} {answer.body[:500]!r} where {opcodes} was expected")
