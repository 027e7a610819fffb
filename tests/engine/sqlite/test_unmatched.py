"""Events that match nothing: stored, and reported with the nearest name."""

import logging
from pathlib import Path

import pytest

from durably.engine.model.functions import KnownNames, Registry, SyncedFunction, UnmatchedEvents, explain_unmatched
from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.events import Event
from durably.protocol.sync import FunctionConfig, Retries, Runtime, StepConfig, Trigger

from ..conftest import opened, run_to_end, send, step_is
from ..small_app import SmallApp, Steps

NOTHING = "no function is triggered by it, and no run waits for it now"


async def unmatched(engine: SqliteEngine, *names: str) -> dict[str, str]:
    return (await engine.accept_events([Event(name=name) for name in names])).unmatched


async def test_engine_without_functions_is_reported(engine: SqliteEngine) -> None:
    assert await unmatched(engine, "a") == {"a": "no app has synced a function with this engine yet"}


async def test_an_event_that_matches_nothing_is_pointed_out_once_in_the_log(
    engine: SqliteEngine, app: SmallApp, caplog: pytest.LogCaptureFixture
) -> None:
    @app.function("order", event="shop/order.placed")
    def order(steps: Steps) -> object:
        return None

    await engine.sync_app(app.sync_request())
    reason = f"{NOTHING}; the nearest event that one is triggered by is 'shop/order.placed'"
    with caplog.at_level(logging.WARNING, "durably.engine"):
        for _ in range(3):
            assert await unmatched(engine, "shop/odrer.placed", "shop/order.placed") == {"shop/odrer.placed": reason}
    assert caplog.messages == [f"the event 'shop/odrer.placed' was stored, but {reason}"]
    assert len(await engine.list_events(name="shop/odrer.placed")) == 3


def test_an_engine_that_stores_no_unmatched_events_does_not_say_so(caplog: pytest.LogCaptureFixture) -> None:
    UnmatchedEvents(are_stored=False).explain(["a"], KnownNames(has_functions=True))
    assert caplog.messages == [
        "the event 'a' was received, but no function is triggered by it, and no run waits for it now"
    ]


async def test_events_that_something_waits_for_or_is_cancelled_by_match(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("waiter", cancel=[{"event": "stop"}], triggers=[{"event": "wait/*", "expression": "event.data.yes"}])
    def waiter(steps: Steps) -> object:
        return steps.wait_for_event("wait", "go")

    await engine.sync_app(app.sync_request())
    assert list(await unmatched(engine, "go")) == ["go"]
    (run,) = await engine.event_runs(await send(engine, "wait/now", yes=True))
    await step_is(engine, run.id, "wait", "waiting")
    assert await unmatched(engine, "go", "stop", "wait/later") == {}


async def test_function_left_out_of_a_sync_triggers_nothing(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("gone")
    def gone(steps: Steps) -> object:
        return None

    @app.function("kept")
    def kept(steps: Steps) -> object:
        return None

    await engine.sync_app(app.sync_request())
    await run_to_end(engine, "gone")
    del app.functions["app-gone"]
    await engine.sync_app(app.sync_request())
    assert list(await unmatched(engine, "gone", "kept")) == ["gone"]


@pytest.mark.parametrize(
    ("sent", "nearest"),
    [
        ("shop/order.place", "shop/order.placed"),
        ("Order.Placed", "shop/order.placed"),
        ("order.placed", "shop/order.placed"),
        ("completely/different", None),
        ("x" * 512, None),
    ],
)
def test_the_nearest_name_is_named(sent: str, nearest: str | None) -> None:
    step = StepConfig(id="step", runtime=Runtime(url="http://app"), retries=Retries(attempts=0))
    triggers = [Trigger(event="shop/order.placed"), Trigger(event="user/*")]
    config = FunctionConfig(id="app-f", triggers=triggers, steps={"step": step})
    reason = explain_unmatched(sent, Registry([SyncedFunction.from_config(config, "app")], {}).known_names())
    assert reason.startswith("no function is triggered by it, and no run waits for it now")
    assert (repr(nearest) in reason) if nearest else ("nearest" not in reason)


async def notes_of(engine: SqliteEngine, event_id: str) -> list[str]:
    event = await engine.get_event(event_id)
    assert event is not None
    return await engine.explain_event(event)


async def test_other_effects_of_an_event_are_reported(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("waiter", event="go", cancel=[{"event": "stop"}])
    def waiter(steps: Steps) -> object:
        steps.wait_for_event("shipped", "order/shiped")
        return steps.wait_for_event("paid", "order/paid")

    await engine.sync_app(app.sync_request())
    (run,) = await engine.event_runs(await send(engine, "go"))
    await step_is(engine, run.id, "shipped", "waiting")
    nearest = f"{NOTHING}; the nearest event that a run has waited for is 'order/shiped'"
    assert await unmatched(engine, "order/shipped") == {"order/shipped": nearest}
    woke = await send(engine, "order/shiped")
    assert await notes_of(engine, woke) == [f"it ended the wait 'shipped' of the run {run.id}"]
    await step_is(engine, run.id, "paid", "waiting")
    assert await notes_of(engine, await send(engine, "order/shiped")) == ["it ended no wait and cancelled no run"]
    assert await notes_of(engine, await send(engine, "stop")) == [f"it cancelled the run {run.id}"]
    assert await notes_of(engine, await send(engine, "go")) == []


async def test_false_conditions_are_reported(engine: SqliteEngine, app: SmallApp) -> None:
    for name, expression in (("large", "event.data.total > 3"), ("small", "event.data.total <= 3"), ("any", None)):
        app.function(name, triggers=[{"event": "order", "expression": expression}])(lambda steps: None)
    await engine.sync_app(app.sync_request())
    (note,) = await notes_of(engine, await send(engine, "order", total=3))
    assert note.startswith("1 function is triggered by its name, but not started, because the condition (if_exp)")
    assert note.endswith("is false: app-large")


async def test_functions_that_an_event_did_not_start_are_reported_with_the_reason(
    engine: SqliteEngine, app: SmallApp
) -> None:
    app.function("bill", event="order", idempotency="event.data.order")(lambda steps: None)
    app.function("mail", event="order", rateLimit={"limit": 1, "period": "1h"})(lambda steps: None)
    app.function("index", event="order", debounce={"period": "1h"})(lambda steps: None)
    app.function("waiter", event="go")(lambda steps: steps.wait_for_event("paid", "order"))
    await engine.sync_app(app.sync_request())
    (run,) = await engine.event_runs(await send(engine, "go"))
    await step_is(engine, run.id, "paid", "waiting")
    first = await send(engine, "order", order=7)
    ended = f"it ended the wait 'paid' of the run {run.id}"
    assert await notes_of(engine, first) == [ended]
    again = await send(engine, "order", order=7)
    bill, mail = (f"no run of the function 'app-{name}' was started: " for name in ("bill", "mail"))
    seen = f"{bill}an event with the same value of its idempotency expression came less than 24 hours before"
    assert await notes_of(engine, again) == [seen, f"{mail}the event is over its rate limit"]
    index = "no run of the function 'app-index' was started: a later event replaced this one (debounce)"
    assert await notes_of(engine, first) == [ended, index]


async def test_an_event_with_many_effects_names_the_first(path: Path, app: SmallApp) -> None:
    @app.function("waiter", event="go")
    def waiter(steps: Steps) -> object:
        return steps.wait_for_event("paid", "order/paid")

    async with opened(path) as engine:
        await engine.sync_app(app.sync_request())
        for _ in range(7):
            (run,) = await engine.event_runs(await send(engine, "go"))
            await step_is(engine, run.id, "paid", "waiting")
        event_id = await send(engine, "order/paid")
    async with opened(path) as engine:
        notes = await notes_of(engine, event_id)
    assert len(notes) == 6
    assert notes[-1] == "it ended 2 more waits or runs"
