"""The functions that every server under test serves, each as an async and as a sync one.

They run in this process or in a server's own, so they return their results to the tests, or report them to
the fake engine (``data["engine"]``, ``data["name"]``).
"""

import asyncio
import datetime as dt
import logging
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from opentelemetry import trace

import durably
from durably import Client, Context, ContextSync, Function, NonRetriableError, RetryAfterError

KINDS = ("async", "sync")
RETRY_AT = dt.datetime(2031, 2, 3, 4, 5, 6, tzinfo=dt.UTC)

request_name: ContextVar[str] = ContextVar("request_name", default="unset")
"""Set around each request, from its header ``x-name``, the way an app's own middleware would."""
request_thread: ContextVar[int] = ContextVar("request_thread", default=0)


class OddError(Exception):
    """An error of the app's own."""


def make_functions(client: Client) -> list[Function[Any]]:
    return [*_make_async(client), *_make_sync(client), *_make_special(client)]


def _make_async(client: Client) -> list[Function[Any]]:
    def create(name: str, **options: Any) -> Any:
        trigger = durably.TriggerEvent(event="test/event")
        return client.create_function(fn_id=f"{name}-async", trigger=trigger, **options)

    async def on_failure(ctx: Context) -> str:
        return f"failed: {ctx.event.data}"

    @create("plain", on_failure=on_failure, retries=2)
    async def plain(ctx: Context) -> dict[str, Any]:
        return _situation(ctx)

    @create("steps")
    async def steps(ctx: Context) -> list[Any]:
        one = await ctx.step.run("one", _async_value, 1)
        await ctx.step.sleep("nap", dt.timedelta(seconds=90))
        return [one, await ctx.step.run("two", lambda: 2)]

    @create("threads")
    async def threads(ctx: Context) -> dict[str, Any]:
        return await ctx.step.run("where", _where)

    @create("raises")
    async def raises(ctx: Context) -> None:
        raise _error(ctx.event.data["how"])

    @create("step-raises")
    async def step_raises(ctx: Context) -> None:
        await ctx.step.run("bad", _raise, ctx.event.data["how"])

    @create("held")
    async def held(ctx: Context) -> str:
        await asyncio.to_thread(report, ctx.event.data, "started")
        try:
            await asyncio.to_thread(wait_at_gate, ctx.event.data)
        finally:
            report(ctx.event.data, "left")
        return "let go"

    @create("mistakes")
    async def mistakes(ctx: Context) -> Any:
        async def nesting() -> None:
            await ctx.step.run("inner", lambda: 1)

        match ctx.event.data["what"]:
            case "output":
                return object()
            case "step output":
                await ctx.step.run("odd", object)
            case "nested step":
                await ctx.step.run("outer", nesting)
            case "duration":
                await ctx.step.sleep("nap", -5)

    @create("middle", middleware=[SeesRequest, SeesRequestSync])
    async def middle(ctx: Context) -> Any:
        return dict(ctx.event.data or {})

    @create("sends")
    async def sends(ctx: Context) -> list[str]:
        return await ctx.step.send_event("send", durably.Event(name="test/sent", data={"n": 1}))

    @create("logs")
    async def logs(ctx: Context) -> None:
        ctx.logger.error("line of the function")

    @create("fields")
    async def fields(ctx: Context) -> None:
        with _records() as records:
            await ctx.step.run("log", lambda: _log(ctx, records))

    @create("traces")
    async def traces(ctx: Context) -> None:
        await ctx.step.run("spans", _current_span)

    return [
        logs,
        plain,
        steps,
        threads,
        raises,
        step_raises,
        held,
        mistakes,
        middle,
        sends,
        traces,
        fields,
    ]


def _make_sync(client: Client) -> list[Function[Any]]:
    def create(name: str, **options: Any) -> Any:
        trigger = durably.TriggerEvent(event="test/event")
        return client.create_function(fn_id=f"{name}-sync", trigger=trigger, **options)

    def on_failure(ctx: ContextSync) -> str:
        return f"failed: {ctx.event.data}"

    @create("plain", on_failure=on_failure, retries=2)
    def plain(ctx: ContextSync) -> dict[str, Any]:
        return _situation(ctx)

    @create("steps")
    def steps(ctx: ContextSync) -> list[Any]:
        one = ctx.step.run("one", lambda value: value, 1)
        ctx.step.sleep("nap", dt.timedelta(seconds=90))
        return [one, ctx.step.run("two", lambda: 2)]

    @create("raises")
    def raises(ctx: ContextSync) -> None:
        raise _error(ctx.event.data["how"])

    @create("step-raises")
    def step_raises(ctx: ContextSync) -> None:
        ctx.step.run("bad", _raise, ctx.event.data["how"])

    @create("held")
    def held(ctx: ContextSync) -> str:
        report(ctx.event.data, "started")
        wait_at_gate(ctx.event.data)
        report(ctx.event.data, "left")
        return "let go"

    @create("mistakes")
    def mistakes(ctx: ContextSync) -> Any:
        return object()

    @create("middle", middleware=[SeesRequest, SeesRequestSync])
    def middle(ctx: ContextSync) -> Any:
        return dict(ctx.event.data or {})

    @create("sends")
    def sends(ctx: ContextSync) -> list[str]:
        return ctx.step.send_event("send", durably.Event(name="test/sent", data={"n": 1}))

    @create("fields")
    def fields(ctx: ContextSync) -> None:
        with _records() as records:
            ctx.step.run("log", lambda: _log(ctx, records))

    @create("traces")
    def traces(ctx: ContextSync) -> None:
        ctx.step.run("spans", _current_span)

    @create("logs")
    def logs(ctx: ContextSync) -> None:
        ctx.logger.error("line of the function")

    return [
        logs,
        plain,
        steps,
        raises,
        step_raises,
        held,
        mistakes,
        middle,
        sends,
        traces,
        fields,
    ]


def _make_special(client: Client) -> list[Function[Any]]:
    @client.create_function(fn_id="endless", trigger=durably.TriggerEvent(event="test/event"))
    async def endless(ctx: Context) -> None:
        """Ends only when it is cancelled, and then says so."""
        try:
            await asyncio.to_thread(report, ctx.event.data, "started")
            await asyncio.sleep(3600)
        finally:
            report(ctx.event.data, "cancelled")

    return [endless]


def report(data: Any, text: str) -> None:
    urllib.request.urlopen(f"{data['engine']}/reports/{data['name']}", text.encode(), timeout=20).close()


def wait_at_gate(data: Any) -> None:
    urllib.request.urlopen(f"{data['engine']}/gates/{data['name']}", timeout=20).close()


def _situation(ctx: Context | ContextSync) -> dict[str, Any]:
    """Thread, event loop and context in which a function ran."""
    return {
        "data": dict(ctx.event.data or {}),
        "events": len(ctx.events),
        "run_id": ctx.run_id,
        "attempt": ctx.attempt,
        "request_name": request_name.get(),
        "in_request_thread": request_thread.get() == threading.get_ident(),
    }


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def _records() -> Iterator[list[logging.LogRecord]]:
    """The records that the client's logger gets."""
    handler, logger = _Records(), logging.getLogger("durably.tests")
    logger.addHandler(handler)
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)


def _log(ctx: Context | ContextSync, records: list[logging.LogRecord]) -> dict[str, Any]:
    """The fields of a line that a step logs."""
    ctx.logger.info("paid %d", 42)
    [record] = [each for each in records if each.getMessage().endswith("paid 42")]
    names = ("app_id", "function_id", "run_id", "step_id")
    return {name: getattr(record, name) for name in names} | {"line": record.getMessage()}


def _current_span() -> dict[str, Any]:
    """The span in which a handler runs."""
    span: Any = trace.get_current_span()
    name = getattr(span, "name", None)
    return {"name": name, "trace_id": format(span.get_span_context().trace_id, "032x")}


def _where() -> dict[str, Any]:
    """The thread of a sync handler."""
    return {
        "in_request_thread": request_thread.get() == threading.get_ident(),
        "on_loop": asyncio._get_running_loop() is not None,
        "request_name": request_name.get(),
    }


async def _async_value(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


def _error(how: str) -> Exception:
    match how:
        case "no retry":
            return NonRetriableError("never again")
        case "retry after":
            return RetryAfterError("later", RETRY_AT)
        case _:
            return OddError("oh no")


def _raise(how: str) -> None:
    raise _error(how)


class SeesRequest(durably.Middleware):
    async def transform_input(self, ctx: Any, function: Any, steps: Any) -> None:
        await asyncio.sleep(0)
        ctx.event.data["async"] = describe_request(self.raw_request)

    async def transform_output(self, result: durably.TransformOutputResult) -> None:
        result.output["order"] = [*result.output.get("order", []), "async"]


class SeesRequestSync(durably.MiddlewareSync):
    def transform_input(self, ctx: Any, function: Any, steps: Any) -> None:
        ctx.event.data["sync"] = describe_request(self.raw_request)

    def transform_output(self, result: durably.TransformOutputResult) -> None:
        result.output["order"] = [*result.output.get("order", []), "sync"]


def describe_request(raw: Any) -> dict[str, Any]:
    """The framework's own request, by its type and by a header read from it."""
    if isinstance(raw, dict) and "wsgi.input" in raw:
        return {"type": "environ", "name": raw.get("HTTP_X_NAME")}
    if isinstance(raw, dict):
        headers = (
            raw["event"].get("http", raw["event"])["headers"]
            if "event" in raw
            else {k.decode(): v.decode() for k, v in raw["headers"]}
        )
        return {"type": "event" if "event" in raw else "scope", "name": headers.get("x-name")}
    return {"type": f"{type(raw).__module__}.{type(raw).__name__}", "name": raw.headers.get("x-name")}
