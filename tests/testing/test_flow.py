"""Flow control and schedules on the virtual clock: what is put off comes at its time, and no other."""

import datetime as dt

import pytest

import durably
from durably.testing.engine import TestEngine
from durably.testing.runs import RunStuckError

from .shop import DAY, client

EVENT = durably.TriggerEvent(event="go")
MINUTE = dt.timedelta(minutes=1)
BEGIN = dt.datetime(2030, 1, 1, 12, 30, tzinfo=dt.UTC)


def go(number: int = 0) -> durably.Event:
    return durably.Event(name="go", data={"n": number})


def echo(**options: object) -> durably.Function[int]:
    @client.create_function(fn_id="echo", trigger=EVENT, **options)  # type: ignore[arg-type]
    def function(ctx: durably.ContextSync) -> int:
        return int(ctx.event.data["n"])

    return function


async def test_schedule_starts_runs_on_the_virtual_clock() -> None:
    @client.create_function(fn_id="nightly", trigger=durably.TriggerCron(cron="0 3 * * *"))
    def nightly(ctx: durably.ContextSync) -> None: ...

    async with TestEngine(client, [nightly], now=BEGIN) as engine:
        await engine.advance(days=3)
        runs = engine.runs(nightly)
        assert [run.created_at for run in runs] == [dt.datetime(2030, 1, day, 3, tzinfo=dt.UTC) for day in (2, 3, 4)]
        with pytest.raises(RunStuckError, match="still due after 10d of"):
            await engine.run_until_idle(max_time=10 * DAY)
        assert len(engine.runs(nightly)) == 13


async def test_a_run_beside_a_schedule_is_waited_for_no_longer_than_allowed() -> None:
    @client.create_function(fn_id="nightly", trigger=durably.TriggerCron(cron="0 3 * * *"))
    def nightly(ctx: durably.ContextSync) -> None: ...

    @client.create_function(fn_id="waits", trigger=EVENT)
    async def waits(ctx: durably.Context) -> None:
        await ctx.step.wait_for_event("wait", event="never", timeout=20 * DAY)

    async with TestEngine(client, [nightly, waits], now=BEGIN) as engine:
        run = await engine.send(go())
        with pytest.raises(RunStuckError, match="10d of virtual time have passed"):
            await run.wait(max_time=10 * DAY)
        await run.wait()
        assert run.ended_at == BEGIN + 20 * DAY


async def test_debounced_run_starts_after_the_last_event() -> None:
    async with TestEngine(client, [echo(debounce=durably.Debounce(period=MINUTE))], now=BEGIN) as engine:
        for number in range(3):
            run = await engine.send(go(number))
            await engine.advance(seconds=50)
        assert not engine.runs()
        await run.wait()
        run.assert_completed(output=2)
        assert run.created_at == BEGIN + dt.timedelta(seconds=160)


@client.create_function(fn_id="batch", trigger=EVENT, batch_events=durably.Batch(max_size=3, timeout=MINUTE))
def batch(ctx: durably.ContextSync) -> list[int]:
    return [int(event.data["n"]) for event in ctx.events]


async def test_batch_starts_when_full_or_after_its_timeout() -> None:
    async with TestEngine(client, [batch], now=BEGIN) as engine:
        await engine.send([go(number) for number in range(5)])
        await engine.run_until_idle()
        assert [run.output for run in engine.runs()] == [[0, 1, 2], [3, 4]]
        assert [run.created_at - BEGIN for run in engine.runs()] == [dt.timedelta(0), MINUTE]
        for run in engine.runs():
            await engine.check_determinism(run)


async def test_throttled_runs_start_on_the_virtual_clock() -> None:
    throttled = echo(throttle=durably.Throttle(limit=1, period=MINUTE))
    held_back = r"10s of virtual time have passed.*It waits for:\n  its first call"
    async with TestEngine(client, [throttled], now=BEGIN) as engine:
        runs = await engine.send([go(number) for number in range(4)])
        with pytest.raises(RunStuckError, match=held_back):
            await runs[1].wait(max_time=dt.timedelta(seconds=10))
        for run in runs:
            await run.wait()
        ended = [run.ended_at - BEGIN for run in runs if run.ended_at]
        assert ended[0] == dt.timedelta(0)
        assert ended == sorted(ended)
        assert ended[-1] >= 2 * MINUTE


async def test_cancellation_by_an_event_and_by_a_timeout() -> None:
    @client.create_function(
        fn_id="cancellable",
        trigger=EVENT,
        cancel=[durably.Cancel(event="stop", if_exp="async.data.n == event.data.n")],
        timeouts=durably.Timeouts(finish=DAY),
    )
    async def cancellable(ctx: durably.Context) -> None:
        await ctx.step.sleep("long", 30 * DAY)

    async with TestEngine(client, [cancellable], now=BEGIN) as engine:
        first, second, third = await engine.send([go(1), go(2), go(3)])
        await engine.advance(hours=1)
        await engine.send(durably.Event(name="stop", data={"n": 1}))
        assert await third.cancel()
        assert not await third.cancel()
        await second.wait()
        for run, after in ((first, dt.timedelta(hours=1)), (second, DAY), (third, dt.timedelta(hours=1))):
            run.assert_cancelled()
            assert run.ended_at == BEGIN + after
