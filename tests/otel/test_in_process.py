"""The trace of runs in the app's own process, from the request that sends an event to the last step."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    ProxyTracerProvider,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
)
from sqlalchemy.orm import Session

import durably.otel
import durably.otel.spans
import durably.outbox
import durably.sqlalchemy
from durably import Batch, Client, Context, ContextSync, Embedded, Event, TriggerEvent
from durably.comm import CommHandler
from durably.engine.model.runs import Run
from durably.errors import FunctionConfigInvalidError

from ..waiting import async_eventually
from .conftest import SETTINGS, Spans, attribute, id_of, linked, trace_of

NO_RETRIES: dict[str, Any] = {"retries": 0}


class App:
    """A client with the engine in this process, instrumented."""

    def __init__(self, path: Path, spans: Spans) -> None:
        self.client = Client(app_id="shop", is_production=False, engine=Embedded(path, settings=SETTINGS))
        self.engine = self.client.engine
        self.spans = spans
        durably.otel.instrument(self.client, tracer_provider=spans.provider, meter_provider=spans.meter_provider)

    def serve(self, *handlers: Callable[..., Any], **options: Any) -> None:
        """Functions with the names of the handlers, each triggered by the event of its name."""
        functions = [
            self.client.create_function(
                fn_id=handler.__name__, trigger=TriggerEvent(event=handler.__name__), **options
            )(handler)
            for handler in handlers
        ]
        CommHandler(client=self.client, framework="test", functions=functions)

    async def request(self, name: str, **data: Any) -> Run:
        """Send an event from a request, and wait for its run's end."""
        with self.spans.provider.get_tracer("web").start_as_current_span("POST /orders"):
            [event_id] = await self.client.send(Event(name=name, data=data))
        [run] = await self.engine.event_runs(event_id)
        return await self.engine.wait_for_run(run.id)


@pytest.fixture
async def app(tmp_path: Path, spans: Spans) -> AsyncIterator[App]:
    app = App(tmp_path / "durably.db", spans)
    yield app
    await app.engine.stop()


async def test_one_trace_from_the_request_to_the_steps(app: App, spans: Spans) -> None:
    async def order(ctx: Context) -> int:
        first = await ctx.step.run("charge", lambda: 1)
        await ctx.step.sleep("nap", 1)
        return first + await ctx.step.run("ship", lambda: 2)

    app.serve(order)
    async with app.engine.running():
        run = await app.request("order", card="4111-secret")
    within_run = ["POST /orders", "send order", "receive order", "run shop-order"]
    assert spans.path(spans.one("run shop-order")) == within_run
    assert spans.path(spans.one("step charge")) == [*within_run, "call shop-order", "process shop-order", "step charge"]
    assert spans.path(spans.one("step ship")) == [*spans.path(spans.one("step charge"))[:-1], "step ship"]
    assert {trace_of(span) for span in spans.all} == {trace_of(spans.one("POST /orders"))}
    first, second = spans.named("call shop-order")
    assert linked(second) == [id_of(first)]
    assert linked(first) == []
    assert run.status == "Completed"


async def test_a_missing_provider_is_reported_at_the_first_span(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", ProxyTracerProvider)
    client = Client(app_id="other", is_production=False)
    durably.otel.instrument(client)
    assert client.tracing is not None
    assert not caplog.records, "a provider may be set later"
    for _ in range(2):
        client.tracing.sending([Event(name="order")])
    assert [record.getMessage()[:56] for record in caplog.records] == [
        "durably.otel.instrument: no TracerProvider is set, so no"
    ]
    caplog.clear()
    assert app.client.tracing is not None
    app.client.tracing.sending([Event(name="order")])
    assert not caplog.records, "it has a provider of its own"


async def test_spans_of_steps_have_the_tokens_of_models(app: App, spans: Spans) -> None:
    async def order(ctx: Context) -> None:
        def think(*models: str) -> None:
            for model in models:
                durably.ai.record_usage(model=model, input_tokens=10, output_tokens=1)

        await ctx.step.run("one", think, "gpt")
        await ctx.step.run("two", think, "gpt", "claude")
        await ctx.step.run("none", think)

    app.serve(order)
    async with app.engine.running():
        await app.request("order")
    names = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.request.model")
    found = [[attribute(spans.one(f"step {step}"), name) for name in names] for step in ("one", "two", "none")]
    assert found == [[10, 1, "gpt"], [20, 2, None], [None, None, None]]


async def test_spans_follow_the_conventions_and_have_no_data(app: App, spans: Spans) -> None:
    def order(ctx: ContextSync) -> str:
        return ctx.step.run("charge", lambda: "output-secret")

    app.serve(order)
    async with app.engine.running():
        run = await app.request("order", card="4111-secret")
    send, process, step = (spans.one(name) for name in ("send order", "process shop-order", "step charge"))
    assert (send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert dict(send.attributes or {}) == {
        "messaging.system": "durably",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "order",
        "messaging.message.id": run.event_id,
    }
    assert dict(process.attributes or {}) == {
        "messaging.system": "durably",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "order",
        "messaging.destination.subscription.name": "shop-order",
        "messaging.message.id": run.event_id,
        "durably.app.id": "shop",
        "durably.function.id": "shop-order",
        "durably.run.id": run.id,
        "durably.attempt": 0,
    }
    assert attribute(step, "durably.step.id") == "charge"
    assert attribute(spans.one("run shop-order"), "durably.run.status") == "Completed"
    assert "secret" not in "".join(span.to_json() for span in spans.all)


async def test_each_attempt_is_a_call_with_its_error(app: App, spans: Spans) -> None:
    async def pay(ctx: Context) -> str:
        async def charge() -> str:
            if ctx.attempt < 2:
                raise ValueError("card declined")
            return "paid"

        return await ctx.step.run("charge", charge)

    app.serve(pay)
    async with app.engine.running():
        await app.request("pay")
    steps, calls = spans.named("step charge"), spans.named("call shop-pay")
    assert [attribute(step, "durably.attempt") for step in steps] == [0, 1, 2]
    assert [attribute(step, "error.type") for step in steps] == ["ValueError", "ValueError", None]
    assert [step.status.status_code for step in steps] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]
    [event] = steps[0].events
    assert (event.attributes or {})["exception.message"] == "card declined"
    assert [linked(call) for call in calls[:3]] == [[], [id_of(calls[0])], [id_of(calls[1])]]
    assert {tuple(spans.path(step)[:4]) for step in steps} == {
        ("POST /orders", "send pay", "receive pay", "run shop-pay")
    }


async def test_a_failed_run_is_marked(app: App, spans: Spans) -> None:
    def fail(ctx: ContextSync) -> None:
        raise LookupError("x" * 50_000)

    app.serve(fail, **NO_RETRIES)
    async with app.engine.running():
        await app.request("fail")
    run, process = spans.one("run shop-fail"), spans.one("process shop-fail")
    assert run.status.status_code is process.status.status_code is StatusCode.ERROR
    assert attribute(run, "error.type") == attribute(process, "error.type") == "LookupError"
    [event] = process.events
    assert len(str(event.attributes)) < 12_000


async def test_a_step_that_is_replayed_makes_no_span(app: App, spans: Spans) -> None:
    async def replay(ctx: Context) -> None:
        await ctx.step.run("once", lambda: None)
        for number in range(3):
            await ctx.step.sleep(f"nap-{number}", 1)

    app.serve(replay)
    async with app.engine.running():
        await app.request("replay")
    assert len(spans.named("process shop-replay")) == 4
    assert len(spans.named("step once")) == 1
    calls = spans.named("call shop-replay")
    assert [linked(call) for call in calls] == [[], *([id_of(before)] for before in calls[:-1])]


async def test_invoked_and_triggered_runs_are_in_the_trace(app: App, spans: Spans) -> None:
    async def parent(ctx: Context) -> int:
        await ctx.step.send_event("notify", Event(name="sibling"))
        return await ctx.step.invoke_by_id("ask", function_id="child", app_id="shop")

    def child(ctx: ContextSync) -> int:
        return ctx.step.run("answer", lambda: 42)

    def sibling(ctx: ContextSync) -> None:
        ctx.step.run("listen", lambda: None)

    app.serve(parent, child, sibling)
    async with app.engine.running():
        await app.request("parent")
        [event] = await app.engine.list_events(name="sibling")
        [run] = await app.engine.event_runs(event.id)
        await app.engine.wait_for_run(run.id)
    assert spans.path(spans.one("step answer"))[3:6] == ["run shop-parent", "run shop-child", "call shop-child"]
    assert spans.path(spans.one("step listen"))[5:11] == [
        "process shop-parent",
        "step notify",
        "send sibling",
        "receive sibling",
        "run shop-sibling",
        "call shop-sibling",
    ]


async def test_failure_handler_continues_the_trace(app: App, spans: Spans) -> None:
    def on_failure(ctx: ContextSync) -> None:
        ctx.step.run("report", lambda: None)

    def fail(ctx: ContextSync) -> None:
        raise ValueError("broken")

    app.serve(fail, on_failure=on_failure, retries=0)
    async with app.engine.running():
        await app.request("fail")
        [event] = await app.engine.list_events(name="inngest/function.failed")
        [run] = await app.engine.event_runs(event.id)
        await app.engine.wait_for_run(run.id)
    assert spans.path(spans.one("step report"))[3:5] == ["run shop-fail", "run shop-fail-failure"]


async def test_events_without_a_trace_begin_one(app: App, spans: Spans) -> None:
    def plain(ctx: ContextSync) -> None:
        ctx.step.run("work", lambda: None)

    app.serve(plain)
    async with app.engine.running():
        receipt = await app.engine.invoke("shop-plain")
        assert receipt.run_id is not None
        await app.engine.wait_for_run(receipt.run_id)
    assert spans.path(spans.one("step work")) == [
        "receive inngest/function.invoked",
        "run shop-plain",
        "call shop-plain",
        "process shop-plain",
        "step work",
    ]


async def test_batch_is_linked_to_all_its_events(app: App, spans: Spans) -> None:
    async def many(ctx: Context) -> int:
        return len(ctx.events)

    app.serve(many, batch_events=Batch(max_size=2, timeout=60_000))
    async with app.engine.running():
        [first] = await app.client.send(Event(name="many"))
        [second] = await app.client.send(Event(name="many"))
        [run] = await app.engine.event_runs(second)
        await app.engine.wait_for_run(run.id)
    received = spans.named("receive many")
    run_span = spans.one("run shop-many")
    assert run_span.parent is not None
    assert run_span.parent.span_id == id_of(received[0])
    assert linked(run_span) == [id_of(received[1])]
    assert attribute(spans.one("process shop-many"), "messaging.batch.message_count") == 2
    assert first != second


async def test_rerun_is_linked_to_the_run_that_it_repeats(app: App, spans: Spans) -> None:
    def plain(ctx: ContextSync) -> None: ...

    app.serve(plain)
    async with app.engine.running():
        run = await app.request("plain")
        await app.engine.wait_for_run(await app.engine.rerun(run.id))
    first, second = spans.named("run shop-plain")
    assert linked(second) == [id_of(first)]
    assert trace_of(first) == trace_of(second)


async def test_a_restart_keeps_the_trace_and_its_links(tmp_path: Path, spans: Spans) -> None:
    before, after = App(tmp_path / "durably.db", spans), App(tmp_path / "durably.db", spans)

    async def nap(ctx: Context) -> None:
        await ctx.step.wait_for_event("wait", event="go-on", timeout="1h")
        await ctx.step.run("work", lambda: None)

    before.serve(nap)
    async with before.engine.running():
        with spans.provider.get_tracer("web").start_as_current_span("POST /orders"):
            [event_id] = await before.client.send(Event(name="nap"))
        await _until_waiting(before, event_id)
    assert spans.named("run shop-nap") == []
    after.serve(nap)
    async with after.engine.running():
        await after.client.send(Event(name="go-on"))
        [run] = await after.engine.event_runs(event_id)
        await after.engine.wait_for_run(run.id)
    first, second = spans.named("call shop-nap")
    assert linked(second) == [id_of(first)]
    assert spans.path(spans.one("step work"))[:4] == ["POST /orders", "send nap", "receive nap", "run shop-nap"]


async def _until_waiting(app: App, event_id: str) -> None:
    [run] = await app.engine.event_runs(event_id)

    async def waits() -> bool:
        return any(step.op == "WaitForEvent" for step in await app.engine.run_steps(run.id))

    await async_eventually(waits, "the run waits for the event")


async def test_metrics_count_sends_calls_steps_and_runs(app: App, spans: Spans) -> None:
    async def order(ctx: Context) -> None:
        async def charge() -> None:
            if ctx.attempt == 0:
                raise ValueError

        await ctx.step.run("charge", charge)

    app.serve(order)
    async with app.engine.running():
        await app.request("order")
    system, function = ("messaging.system", "durably"), ("durably.function.id", "shop-order")
    failed = ("error.type", "ValueError")
    assert spans.measured("messaging.client.sent.messages") == {(("messaging.destination.name", "order"), system): 1}
    assert spans.measured("durably.step.duration") == {(function, system): 1, (function, failed, system): 1}
    assert spans.measured("messaging.process.duration")[function, failed, system] == 1
    assert spans.measured("durably.run.duration") == {(function, ("durably.run.status", "Completed"), system): 1}


async def test_texts_of_errors_can_be_left_out(tmp_path: Path, spans: Spans) -> None:
    app = App(tmp_path / "durably.db", spans)
    app.client.tracing = None
    durably.otel.instrument(app.client, tracer_provider=spans.provider, record_exceptions=False)

    def fail(ctx: ContextSync) -> None:
        raise ValueError("card 4111-secret")

    app.serve(fail, **NO_RETRIES)
    async with app.engine.running():
        await app.request("fail")
    assert attribute(spans.one("process shop-fail"), "error.type") == "ValueError"
    assert "4111-secret" not in "".join(span.to_json() for span in spans.all)


class Broken(SpanProcessor):
    """A part of the app's own set-up that does not work."""

    def __init__(self, where: str) -> None:
        self._where = where

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self._where == "start":
            raise LookupError(f"broken at the {self._where}")

    def on_end(self, span: Any) -> None:
        if self._where == "end":
            raise LookupError(f"broken at the {self._where}")


@pytest.mark.parametrize("where", ["start", "end", "sampler"])
async def test_broken_parts_of_opentelemetry_disturb_no_run(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durably.otel.spans, "_reported", set())
    spans = Spans()
    spans.provider.add_span_processor(Broken(where))
    if where == "sampler":
        spans.provider.sampler = None  # type: ignore[assignment]
    app = App(tmp_path / "durably.db", spans)

    async def order(ctx: Context) -> str:
        await ctx.step.send_event("notify", Event(name="other"))
        return await ctx.step.run("charge", lambda: "paid")

    app.serve(order)
    async with app.engine.running():
        [event_id] = await app.client.send(Event(name="order"))
        [run] = await app.engine.event_runs(event_id)
        ended = await app.engine.wait_for_run(run.id)
    assert ended.status == "Completed"
    assert len([line for line in caplog.messages if line.startswith("spans are left out")]) == 1


def test_a_client_is_instrumented_once(tmp_path: Path) -> None:
    client = Client(app_id="shop", is_production=False)
    durably.otel.instrument(client)
    with pytest.raises(FunctionConfigInvalidError, match="already instrumented"):
        durably.otel.instrument(client)
    with pytest.raises(FunctionConfigInvalidError, match=r"takes a durably\.Client"):
        durably.otel.instrument("shop")  # type: ignore[arg-type]


async def test_state_and_baggage_of_the_trace_reach_steps_and_the_runs_that_they_start(app: App, spans: Spans) -> None:
    seen: list[object] = []

    async def order(ctx: Context) -> None:
        await ctx.step.run("charge", note)
        await ctx.step.sleep("nap", 1)
        await ctx.step.send_event("notify", Event(name="notified"))

    async def notified(ctx: Context) -> None:
        await ctx.step.run("listen", note)

    async def note() -> None:
        seen.append(baggage.get_all())

    app.serve(order, notified)
    state = TraceState([("vendor", "a:1;b")])
    sender = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED), trace_state=state)
    outside = baggage.set_baggage("tenant", "a b,é", trace.set_span_in_context(NonRecordingSpan(sender)))
    token = attach(outside)
    try:
        async with app.engine.running():
            await app.request("order")
            [event] = await app.engine.list_events(name="notified")
            [run] = await app.engine.event_runs(event.id)
            await app.engine.wait_for_run(run.id)
    finally:
        detach(token)
    assert seen == [{"tenant": "a b,é"}] * 2
    states = [span.context.trace_state.to_header() for span in spans.all if span.context is not None]
    assert {trace_of(span) for span in spans.all} == {1}
    assert set(states) == {"vendor=a:1;b"}
    assert baggage.get_all() == {}


async def test_event_of_an_outbox_continues_the_trace_of_its_transaction(
    app: App, spans: Spans, tmp_path: Path
) -> None:
    database = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'shop.sqlite3'}")
    durably.sqlalchemy.metadata.create_all(database)
    durably.sqlalchemy.relay(app.client, database)
    ended = asyncio.Event()

    async def order(ctx: Context) -> None:
        await ctx.step.run("charge", lambda: 1)
        ended.set()

    app.serve(order)
    async with app.engine.running():
        tracer = spans.provider.get_tracer("web")
        with Session(database) as session:
            for number in (1, 2):
                with tracer.start_as_current_span(f"POST /orders/{number}"):
                    name = "order" if number == 2 else "nothing"
                    assert durably.outbox.write_events(
                        durably.sqlalchemy.SessionConnection(session), Event(name=name), app.client
                    )
            session.commit()
        await ended.wait()
    assert spans.path(spans.one("step charge"))[:2] == ["POST /orders/2", "send order"]
    assert spans.path(spans.one("send nothing"))[:1] == ["POST /orders/1"]
