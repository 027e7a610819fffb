"""Events that match nothing: stored, and reported with the nearest name."""

import logging

import pytest

from durably.engine.embedded import EmbeddedEngine
from durably.engine.embedded.registry import Function, Registry
from durably.engine.embedded.unmatched import explain_unmatched
from durably.protocol.events import Event
from durably.protocol.sync import FunctionConfig, Retries, Runtime, StepConfig, Trigger

from .conftest import run_to_end, send, step_is
from .small_app import SmallApp, Steps


async def unmatched(engine: EmbeddedEngine, *names: str) -> dict[str, str]:
    return (await engine.accept_events([Event(name=name) for name in names])).unmatched


async def test_an_engine_without_functions_says_so(engine: EmbeddedEngine) -> None:
    assert await unmatched(engine, "a") == {"a": "no app has synced a function with this engine yet"}


async def test_an_event_that_matches_nothing_is_pointed_out_once_in_the_log(
    engine: EmbeddedEngine, app: SmallApp, caplog: pytest.LogCaptureFixture
) -> None:
    @app.function("order", event="shop/order.placed")
    def order(steps: Steps) -> object:
        return None

    await engine.sync_app(app.sync_request())
    reason = "no function is triggered by it; the nearest event that one is triggered by is 'shop/order.placed'"
    with caplog.at_level(logging.WARNING, "durably.engine"):
        for _ in range(3):
            assert await unmatched(engine, "shop/odrer.placed", "shop/order.placed") == {"shop/odrer.placed": reason}
    assert caplog.messages == [f"the event 'shop/odrer.placed' was stored, but {reason}"]
    assert len(await engine.list_events(name="shop/odrer.placed")) == 3


async def test_events_that_something_waits_for_or_is_cancelled_by_match(engine: EmbeddedEngine, app: SmallApp) -> None:
    @app.function("waiter", cancel=[{"event": "stop"}], triggers=[{"event": "wait/*", "expression": "event.data.yes"}])
    def waiter(steps: Steps) -> object:
        return steps.wait_for_event("wait", "go")

    await engine.sync_app(app.sync_request())
    assert list(await unmatched(engine, "go")) == ["go"]
    (run,) = await engine.event_runs(await send(engine, "wait/now", yes=True))
    await step_is(engine, run.id, "wait", "waiting")
    assert await unmatched(engine, "go", "stop", "wait/later") == {}


async def test_what_the_app_leaves_out_triggers_nothing_any_more(engine: EmbeddedEngine, app: SmallApp) -> None:
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
    reason = explain_unmatched(sent, Registry([Function.from_config(config, "app")], {}))
    assert reason.startswith("no function is triggered by it")
    assert (repr(nearest) in reason) if nearest else ("nearest" not in reason)
