"""All options at once, as far as they may be combined; and what apps of this SDK send of them."""

import datetime as dt
from typing import Any

import msgspec

import durably
from durably import Context, Debounce
from durably.engine.core.flow.buckets import Pace
from durably.engine.core.flow.config import read_flow
from durably.engine.model.runs import RunStatus
from durably.protocol.sync import FunctionConfig

from .conftest import World

SECOND = dt.timedelta(seconds=1)
MINUTE = dt.timedelta(minutes=1)
HOUR = dt.timedelta(hours=1)

ALL: dict[str, Any] = {
    "trigger": [
        durably.TriggerEvent(event="order", expression="event.data.n >= 0"),
        durably.TriggerCron(cron="0 0 1 1 *"),
    ],
    "idempotency": "event.data.id",
    "rate_limit": durably.RateLimit(limit=20, period=MINUTE, key="event.data.shop"),
    "debounce": durably.Debounce(period=10 * SECOND, timeout=MINUTE, key="event.data.order"),
    "singleton": durably.Singleton(mode="cancel", key="event.data.order"),
    "throttle": durably.Throttle(limit=6, period=MINUTE, burst=2, key="event.data.shop"),
    "concurrency": [
        durably.Concurrency(limit=2),
        durably.Concurrency(limit=1, scope="account", key="event.data.shop"),
    ],
    "priority": durably.Priority(run="event.data.paid ? 300 : 0"),
    "cancel": [durably.Cancel(event="stop", if_exp="async.data.order == event.data.order", timeout=HOUR)],
    "timeouts": durably.Timeouts(start=5 * MINUTE, finish=HOUR),
    "retries": 1,
}


async def test_a_function_with_all_options(world: World) -> None:
    failures: list[str] = []

    async def on_failure(ctx: Context) -> None:
        failures.append(ctx.event.data["event"]["data"]["order"])

    @world.function("all", on_failure=on_failure, **ALL)
    async def work(ctx: Context) -> object:
        n = await ctx.step.run("read", lambda: ctx.event.data["n"])
        await ctx.step.sleep("nap", 30 * SECOND)
        if ctx.event.data["order"] == "bad":
            raise ValueError("bad order")
        return n

    await world.open()
    sent = [("a", 1), ("a", 2), ("b", 3), ("stopped", 4), ("bad", 5), ("a", 2), ("none", -1)]
    for order, n in sent:
        await world.send("order", order=order, n=n, id=n, shop="s", paid=n == 5)
        # Events of one shop are spread, one every three seconds, by the rate limit.
        await world.let_pass(seconds=4)
    await world.restart()
    await world.let_pass(seconds=15)
    await world.send("stop", order="stopped")
    await world.restart(after=5 * SECOND)
    await world.let_pass(minutes=10)
    by_order = {
        (await world.engine.get_event(run.event_ids[0])).event.data["order"]: run  # type: ignore[union-attr]
        for run in await world.runs("all")
    }
    assert {order: run.status for order, run in by_order.items()} == {
        "a": RunStatus.COMPLETED,
        "b": RunStatus.COMPLETED,
        "stopped": RunStatus.CANCELLED,
        "bad": RunStatus.FAILED,
    }
    assert sorted(value for value in await world.outputs("all") if isinstance(value, int)) == [2, 3]
    assert failures == ["bad"]
    left = (
        "concurrency_keys",
        "queued_calls",
        "slots_used",
        "slots",
        "throttle_times",
        "cancel_events",
        "deadlines",
        "pending_events",
        "run_states",
    )
    assert world.rows(*left) == 0


def test_options_reach_the_engine_as_they_were_written() -> None:
    client = durably.Client(app_id="shop", is_production=False)
    options = {name: value for name, value in ALL.items() if name not in ("trigger", "retries")}

    @client.create_function(fn_id="all", trigger=ALL["trigger"], **options)
    async def work(ctx: Context) -> None: ...

    @client.create_function(
        fn_id="batched",
        trigger=durably.TriggerEvent(event="order"),
        batch_events=durably.Batch(max_size=9, timeout=90 * SECOND, key="event.data.k", if_exp="event.data.ok"),
    )
    async def batched(ctx: Context) -> None: ...

    flow, of_batches = (read_flow(_read(function)) for function in (work, batched))
    assert flow.options.debounce == Debounce(period="10s", timeout="1m", key="event.data.order")
    assert flow.expressions["idempotency"].text == "event.data.id"
    assert flow.expressions["debounce.key"].text == "event.data.order"
    assert flow.options.singleton is not None
    assert flow.options.singleton.mode == "cancel"
    assert [(limit.limit, limit.scope) for limit in flow.concurrency] == [(2, "fn"), (1, "account")]
    (cancel,) = flow.options.cancel or ()
    assert (cancel.event, cancel.timeout) == ("stop", "1h")
    assert (flow.start_by(0), flow.finish_by(0)) == (300_000, 3_600_000)
    assert flow.throttle == Pace(interval=10 * 10**9, tolerance=10 * 10**9)
    assert "priority.run" in flow.expressions
    assert [schedule.text for schedule in flow.schedules] == ["0 0 1 1 *"]
    batch = of_batches.options.batch_events
    assert batch is not None
    assert (batch.max_size, batch.timeout) == (9, "90s")


def _read(function: durably.Function[Any]) -> FunctionConfig:
    (config,) = function.configs("http://127.0.0.1:1/api/inngest")
    return msgspec.json.decode(msgspec.json.encode(config), type=FunctionConfig)
