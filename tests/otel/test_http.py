"""The trace of runs of an app that its engine calls over HTTP, with spans of both."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import ClientSession
from opentelemetry import baggage

import durably.otel
from durably import Client, Context, ContextSync, Event
from durably.engine.api.http.server import EngineServer
from durably.engine.sqlite.server import serve_database
from durably.otel.engine import OtelEngineTracing
from durably.protocol.headers import TraceContext

from ..app_and_engine.conftest import App, Gate, durable, listening
from .conftest import SETTINGS, Spans, attribute, linked, trace_of

SENDER = TraceContext(trace_id=0xABC, span_id=0xDEF, is_sampled=True)


@pytest.fixture
async def plain_engine(tmp_path: Path) -> AsyncIterator[EngineServer]:
    """An engine that reports no spans."""
    async with await serve_database(tmp_path / "plain.db", SETTINGS, port=0) as server:
        yield server


@pytest.fixture
async def engine(tmp_path: Path, spans: Spans) -> AsyncIterator[EngineServer]:
    settings = msgspec.structs.replace(SETTINGS, tracing=OtelEngineTracing(spans.provider, spans.meter_provider))
    async with await serve_database(tmp_path / "engine.db", settings, port=0) as server:
        yield server


async def served(engine: EngineServer, spans: Spans, *, is_blocking: bool) -> AsyncIterator[App]:
    async with ClientSession() as session:
        gate = Gate(engine.origin, session)
        async with listening(gate.handle) as gate.url:
            client = Client(app_id="app", is_production=False, api_base_url=gate.url, event_api_base_url=gate.url)
            durably.otel.instrument(client, tracer_provider=spans.provider)
            app = App(client, engine, gate, is_blocking=is_blocking)
            async with listening(app.handle) as origin:
                app.url = f"{origin}/api/inngest"
                yield app


@pytest.fixture(params=[False, True], ids=["async", "sync"])
async def app(request: pytest.FixtureRequest, engine: EngineServer, spans: Spans) -> AsyncIterator[App]:
    async for app in served(engine, spans, is_blocking=request.param):
        yield app


@pytest.fixture
async def app_of_plain_engine(plain_engine: EngineServer, spans: Spans) -> AsyncIterator[App]:
    async for app in served(plain_engine, spans, is_blocking=False):
        yield app


async def send(app: App, spans: Spans) -> None:
    """Send the event of the app's function from a request, and wait for the run's end."""
    with spans.provider.get_tracer("web").start_as_current_span("POST /orders"):
        [event_id] = await app.client.send(Event(name="go"))
    [run] = await app.engine.engine.event_runs(event_id)
    await app.ended(run.id)


async def sync(app: App) -> None:
    async with ClientSession() as session, session.put(app.url) as response:
        assert response.status == 200, await response.text()


async def test_one_trace_over_http(app: App, spans: Spans) -> None:
    async def order(ctx: Context) -> None:
        await ctx.step.run("charge", lambda: 1)
        await ctx.step.sleep("nap", 1)
        await ctx.step.run("ship", lambda: 2)

    def order_sync(ctx: ContextSync) -> None:
        ctx.step.run("charge", lambda: 1)
        ctx.step.sleep("nap", 1)
        ctx.step.run("ship", lambda: 2)

    app.serve(durable(app, order_sync if app.is_blocking else order, fn_id="order"))
    await sync(app)
    await send(app, spans)
    around = ["POST /orders", "send go", "receive go", "run app-order", "call app-order", "process app-order"]
    assert spans.path(spans.one("step charge")) == [*around, "step charge"]
    assert spans.path(spans.one("step ship")) == [*around, "step ship"]
    assert {trace_of(span) for span in spans.all} == {trace_of(spans.one("POST /orders"))}
    assert all(linked(call) for call in spans.named("call app-order")[1:])


async def test_an_engine_without_tracing_passes_the_trace_on(app_of_plain_engine: App, spans: Spans) -> None:
    app = app_of_plain_engine

    async def order(ctx: Context) -> None:
        await ctx.step.send_event("notify", Event(name="other"))
        await ctx.step.sleep("nap", 1)
        await ctx.step.run("charge", lambda: 1)

    app.serve(durable(app, order))
    await sync(app)
    await send(app, spans)
    around = ["POST /orders", "send go", "process app-order"]
    assert spans.path(spans.one("step charge")) == [*around, "step charge"]
    assert spans.path(spans.one("send other")) == [*around, "step notify", "send other"]


async def test_an_apps_failed_answer_marks_the_call(engine: EngineServer, spans: Spans) -> None:
    async for app in served(engine, spans, is_blocking=False):

        async def fail(ctx: Context) -> None:
            raise ValueError

        app.serve(durable(app, fail, retries=0))
        await sync(app)
        await send(app, spans)
        assert attribute(await spans.wait_for("call app-fail"), "error.type") == "ValueError"
        assert attribute(await spans.wait_for("run app-fail"), "error.type") == "ValueError"


async def test_a_senders_trace_is_continued_without_its_sdk(app: App, spans: Spans) -> None:
    """Any program may send events with a ``traceparent``. An invalid one is ignored."""

    found: list[object] = []

    def plain(ctx: ContextSync) -> None:
        ctx.step.run("note", lambda: found.append(baggage.get_all()))

    app.serve(durable(app, plain))
    await sync(app)
    for traceparent in (str(SENDER), "00-not-a-trace"):
        async with (
            ClientSession() as session,
            session.post(
                f"{app.engine.origin}/e/key",
                json={"name": "go"},
                headers={"traceparent": traceparent, "tracestate": "vendor=1", "baggage": "tenant=a"},
            ) as response,
        ):
            [event_id] = (await response.json())["ids"]
        [run] = await app.engine.engine.event_runs(event_id)
        await app.ended(run.id)
    sent, unsent = spans.named("receive go")
    assert sent.parent is not None
    assert (trace_of(sent), sent.parent.span_id) == (SENDER.trace_id, SENDER.span_id)
    assert unsent.parent is None
    assert found == [{"tenant": "a"}, {}]
    states = [span.context.trace_state.to_header() for span in spans.named("step note") if span.context is not None]
    assert states == ["vendor=1", ""]


async def test_events_of_an_untraced_app_continue_the_trace_of_their_run(engine: EngineServer, spans: Spans) -> None:
    async for app in served(engine, spans, is_blocking=False):
        app.client.tracing = None

        async def order(ctx: Context) -> None:
            if ctx.event.data.get("is_first"):
                await ctx.step.send_event("notify", Event(name="go"))

        app.serve(durable(app, order))
        await sync(app)
        [event_id] = await app.client.send(Event(name="go", data={"is_first": True}))
        [run] = await app.engine.engine.event_runs(event_id)
        await app.ended(run.id)
        newest = (await app.engine.engine.list_runs())[0]
        await app.ended(newest.id)
    paths = {tuple(spans.path(span)) for span in spans.named("run app-order")}
    assert paths == {("receive go", "run app-order"), ("receive go", "run app-order", "run app-order")}
