"""Traces of runs on Temporal: of an app in its own processes, and of an app that is called over HTTP."""

import datetime as dt
import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from temporalio.client import Client as TemporalClient
from ulid import ULID

import durably.otel
from durably import Client, Context, ContextSync, Event, TemporalEngine, TriggerEvent
from durably.comm import CommHandler
from durably.engine.api.http.server import EngineServer
from durably.engine.core.calls import Answer, CallData, Unreached
from durably.engine.model.runs import Run
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.engine import HttpWorkflowEngine
from durably.engine.temporal.ids import make_run_id
from durably.engine.temporal.messages import CallInput
from durably.otel.engine import OtelEngineTracing
from durably.protocol.errors import ErrorData

from ...app_and_engine.conftest import durable
from ...otel.conftest import Spans, attribute, id_of, linked, trace_of
from ...otel.test_http import served, sync
from ...temporal.dev_server import DevServer
from .running_apps import make_client, on, running

SETTINGS = EngineSettings(
    backoff=lambda attempt, jitter: dt.timedelta(milliseconds=20),
    allow_private_addresses=True,
    close_grace=dt.timedelta(milliseconds=100),
)


@pytest.fixture
def spans() -> Spans:
    return Spans()


class App:
    """A client whose functions run in this process, instrumented."""

    def __init__(self, server: DevServer, name: str, spans: Spans) -> None:
        self.id = f"{name}{os.getpid()}"
        self.engine = TemporalEngine(server.address, settings=SETTINGS)
        self.client = Client(app_id=self.id, engine=self.engine, is_production=False)
        self._spans = spans
        durably.otel.instrument(self.client, tracer_provider=spans.provider)

    def event(self, function: str) -> str:
        return f"{self.id}/{function}"

    def serve(self, *handlers: Callable[..., Any], **options: Any) -> None:
        """Functions with the names of the handlers, each triggered by an event of its name."""
        functions = [
            self.client.create_function(
                fn_id=handler.__name__, trigger=TriggerEvent(event=self.event(handler.__name__)), **options
            )(handler)
            for handler in handlers
        ]
        CommHandler(client=self.client, framework="test", functions=functions)

    async def request(self, function: str) -> Run:
        """Send an event from a request, and wait for its run's end."""
        with self._spans.provider.get_tracer("web").start_as_current_span("POST /orders"):
            [event_id] = await self.client.send(Event(name=self.event(function)))
        run = await self.engine.wait_for_run(run_of(event_id, f"{self.id}-{function}"))
        await self._spans.wait_for(f"run {self.id}-{function}")
        return run


def run_of(event_id: str, function_id: str) -> str:
    return make_run_id(ULID.from_str(event_id).milliseconds, event_id, function_id)


async def test_sender_calls_and_steps_are_in_one_trace(server: DevServer, spans: Spans) -> None:
    app = App(server, "traced", spans)

    async def order(ctx: Context) -> None:
        async def charge() -> None:
            if ctx.attempt == 0:
                raise ValueError("card declined")

        await ctx.step.run("charge", charge)
        await ctx.step.sleep("nap", "1ms")
        await ctx.step.run("ship", lambda: None)

    app.serve(order)
    async with app.engine.running():
        run = await app.request("order")
        assert run.status == "Completed"
        around = ["POST /orders", f"send {app.id}/order", f"receive {app.id}/order", f"run {app.id}-order"]
        around += [f"call {app.id}-order", f"process {app.id}-order"]
        charges, ship = spans.named("step charge"), spans.one("step ship")
        assert [spans.path(step) for step in charges] == [[*around, "step charge"]] * 2
        assert spans.path(ship) == [*around, "step ship"]
        assert [attribute(step, "error.type") for step in charges] == ["ValueError", None]
        assert {trace_of(span) for span in spans.all} == {trace_of(spans.one("POST /orders"))}
        calls = spans.named(f"call {app.id}-order")
        assert [linked(call) for call in calls] == [[], *([id_of(before)] for before in calls[:-1])]
        assert len(calls) >= 3, "after a failed attempt, and after a sleep"
        assert len({id_of(call) for call in calls}) == len(calls)

        before = [span.name for span in spans.all]
        assert [step.id for step in await app.engine.run_steps(run.id)] == ["charge", "nap", "ship"]
        assert [span.name for span in spans.all] == before, "the history was replayed for the steps"


async def test_runs_that_a_run_starts_are_in_its_trace(server: DevServer, spans: Spans) -> None:
    app = App(server, "family", spans)

    async def parent(ctx: Context) -> None:
        await ctx.step.send_event("notify", Event(name=app.event("sibling")))
        await ctx.step.invoke_by_id("ask", function_id="child", app_id=app.id)
        raise LookupError("after that")

    def child(ctx: ContextSync) -> None: ...

    def sibling(ctx: ContextSync) -> None: ...

    app.serve(parent, child, sibling, retries=0)
    async with app.engine.running():
        run = await app.request("parent")
        own = spans.one(f"run {app.id}-parent")
        assert (run.status, attribute(own, "error.type")) == ("Failed", "LookupError")
        invoked, notified = [await spans.wait_for(f"run {app.id}-{each}") for each in ("child", "sibling")]
    assert spans.path(invoked)[-2:] == [f"run {app.id}-parent", f"run {app.id}-child"]
    sent = [
        f"process {app.id}-parent",
        "step notify",
        f"send {app.event('sibling')}",
        f"receive {app.event('sibling')}",
    ]
    assert spans.path(notified)[-5:] == [*sent, f"run {app.id}-sibling"]
    assert {trace_of(span) for span in spans.all} == {trace_of(own)}


async def test_one_trace_of_an_app_that_is_called_over_http(server: DevServer, spans: Spans) -> None:
    settings = msgspec.structs.replace(SETTINGS, tracing=OtelEngineTracing(spans.provider))
    temporal = await TemporalClient.connect(server.address, data_converter=DATA_CONVERTER)

    async def open_engine() -> HttpWorkflowEngine:
        return await HttpWorkflowEngine.open(temporal, settings)

    async def order(ctx: Context) -> None:
        async def charge() -> None:
            if ctx.attempt == 0:
                raise ValueError

        await ctx.step.run("charge", charge)
        await ctx.step.sleep("nap", "1ms")
        await ctx.step.run("ship", lambda: None)

    async with await EngineServer.open(open_engine, settings, port=0) as engine:
        async for app in served(engine, spans, is_blocking=False):
            app.serve(durable(app, order, fn_id="order"))
            await sync(app)
            with spans.provider.get_tracer("web").start_as_current_span("POST /orders"):
                [event_id] = await app.client.send(Event(name="go"))
            run = await engine.engine.wait_for_run(run_of(event_id, "app-order"))
            await spans.wait_for("run app-order")
    assert run.status == "Completed"
    around = ["POST /orders", "send go", "receive go", "run app-order", "call app-order", "process app-order"]
    assert [spans.path(step) for step in spans.named("step charge")] == [[*around, "step charge"]] * 2
    assert spans.path(spans.one("step ship")) == [*around, "step ship"]
    calls = spans.named("call app-order")
    assert [linked(call) for call in calls] == [[], *([id_of(before)] for before in calls[:-1])]
    # The engine also continues runs that other tests have left on the server, and calls their apps.
    own = [
        span for span in spans.all if span.name.endswith(" app-order") or span.name.split()[0] not in ("call", "run")
    ]
    assert {trace_of(span) for span in own} == {trace_of(spans.one("POST /orders"))}


async def test_call_that_does_not_reach_its_app_is_repeated_in_a_separate_span(server: DevServer, spans: Spans) -> None:
    app = make_client()

    @app.create_function(fn_id="go", trigger=on(app, "go"))
    async def go(ctx: Context) -> None: ...

    settings = msgspec.structs.replace(SETTINGS, tracing=OtelEngineTracing(spans.provider))
    async with running(server.address, app, go, settings=settings) as on_temporal:

        async def refuse_once(call: CallInput, data: CallData) -> Answer:
            on_temporal.caller = on_temporal.call_function
            return Unreached(ErrorData(name="ConnectError", message="connection refused"))

        on_temporal.caller = refuse_once
        await (await on_temporal.start("go")).result()
        await spans.wait_for(f"run {app.app_id}-go")
    first, second = spans.named(f"call {app.app_id}-go")
    assert [attribute(call, "error.type") for call in (first, second)] == ["ConnectError", None]
    assert [attribute(call, "durably.call.generation") for call in (first, second)] == [1, 1]
    assert id_of(first) != id_of(second)
    assert (linked(first), linked(second)) == ([], [id_of(first)])
