"""The engine for tests: months in milliseconds, each thing at its time, and nothing left to chance."""

import asyncio
import datetime as dt
import random
import threading
import time
from pathlib import Path
from typing import Any

import pydantic
import pytest

import durably
from durably.engine.model.runs import RunStatus
from durably.testing.engine import TestEngine
from durably.testing.runs import RunStuckError, RunUnknownError

from .shop import DAY, approve, billing, charge, client, mail, onboard, order

SIGN_UP = durably.Event(name="user/signed.up", data={"email": "ada@example.com"})


async def test_a_function_that_takes_a_month_takes_no_time() -> None:
    began = time.monotonic()
    async with TestEngine(client, [onboard]) as engine:
        start = engine.now
        run = await engine.send(SIGN_UP)
        await run.wait()
        run.assert_completed(output="reminded")
        assert engine.now - start == 37 * DAY
        assert run.steps["a-month"].ended_at == start + 30 * DAY
    assert time.monotonic() - began < 20


async def test_time_stands_still_until_the_test_advances_it() -> None:
    async with TestEngine(client, [onboard]) as engine:
        start = engine.now
        run = await engine.send(SIGN_UP)
        assert list(run.steps) == ["welcome", "a-month"]
        assert run.steps["a-month"].due_at == start + 30 * DAY
        await engine.advance(days=29, hours=23, minutes=59, seconds=59)
        assert not run.steps["a-month"].has_ended
        await engine.advance(seconds=1)
        assert run.steps["a-month"].has_ended
        assert run.status is RunStatus.RUNNING
        await engine.send(durably.Event(name="user/logged.in", data={"email": "bob@example.com"}))
        assert not run.has_ended
        await engine.send(durably.Event(name="user/logged.in", data={"email": "ada@example.com", "city": "Rome"}))
        run.assert_completed(output="came back from Rome")
        assert engine.now == start + 30 * DAY


async def test_clock_begins_at_the_given_time() -> None:
    begin = dt.datetime(2031, 3, 30, 1, 30, tzinfo=dt.UTC)
    async with TestEngine(client, [onboard], now=begin) as engine:
        run = await engine.send(SIGN_UP)
        assert run.events[0].ts == begin.timestamp() * 1000
        await engine.advance(dt.timedelta(hours=1))
        assert engine.now == begin + dt.timedelta(hours=1)


async def test_functions_of_several_apps_invoke_each_other() -> None:
    async with TestEngine(client, [order]).with_app(billing, [mail]) as engine:
        engine.mock_step("charge", returns="receipt 1")
        run = await engine.send(durably.Event(name="order/placed", data={"amount": 3}))
        await run.wait()
        run.assert_completed(output={"receipt": "receipt 1", "mailed": "mailed receipt 1"})
        (mailing,) = engine.runs(mail)
        assert mailing.function_id == "billing-mail"
        mailing.assert_step("send", output="mailed receipt 1")


async def test_events_that_functions_send_go_to_the_test_engine() -> None:
    @client.create_function(fn_id="count", trigger=durably.TriggerEvent(event="billing/mailed"))
    def count(ctx: durably.ContextSync) -> str:
        return str(ctx.event.data["text"])

    async with TestEngine(client, [count]).with_app(billing, [mail]) as engine:
        start = engine.now
        run = await engine.invoke(mail, {"receipt": "r"})
        await run.wait()
        (counted,) = engine.runs(count)
        counted.assert_completed(output="mailed r")
        assert counted.events[0].ts == (start + DAY / 2).timestamp() * 1000


async def test_retries_take_the_time_that_they_take_in_production() -> None:
    @client.create_function(fn_id="flaky", trigger=durably.TriggerEvent(event="flaky"), retries=3)
    async def flaky(ctx: durably.Context) -> None:
        await ctx.step.run("fail", charge, 1)

    async with TestEngine(client, [flaky]) as engine:
        start = engine.now
        run = await engine.send(durably.Event(name="flaky"))
        await run.wait()
        run.assert_failed(error="CardError", message="no bank")
        run.assert_step("fail", error="CardError", attempts=4)
        assert engine.now - start == dt.timedelta(seconds=15 + 30 + 60)


async def test_functions_pause_and_resume_and_runs_go_again() -> None:
    async with TestEngine(client, [approve]) as engine:
        await engine.pause(approve)
        skipped = await engine.send(durably.Event(name="approval/asked"))
        assert skipped.status is RunStatus.SKIPPED
        assert "it is paused" in skipped.timeline()
        assert "not remembered" not in skipped.timeline()
        await engine.resume(approve)
        run = await (await engine.send(durably.Event(name="approval/asked"))).wait()
        run.assert_completed(output=None)
        again = await engine.rerun(run)
        assert again.id != run.id
        assert await engine.signal("approval-1", 1)
        again.assert_completed(output=1)


async def test_several_events_give_their_runs() -> None:
    async with TestEngine(client, [onboard, approve]) as engine:
        runs = await engine.send([SIGN_UP, durably.Event(name="unmatched/event"), durably.Event(name="approval/asked")])
        assert [run.function_id for run in runs] == [onboard.id, approve.id]
        assert [run.id for run in engine.runs()] == [run.id for run in runs]


async def test_run_of_an_event_with_no_or_several_runs_is_an_error() -> None:
    @client.create_function(fn_id="also", trigger=durably.TriggerEvent(event="user/signed.up"))
    def also(ctx: durably.ContextSync) -> None: ...

    async with TestEngine(client, [onboard, also]) as engine:
        nothing = await engine.send(durably.Event(name="unmatched/event"))
        with pytest.raises(RunUnknownError, match="'unmatched/event' has started no run"):
            _ = nothing.status
        with pytest.raises(RunStuckError, match="started no run"):
            await nothing.wait()
        both = await engine.send(SIGN_UP)
        with pytest.raises(RunUnknownError, match="2 runs, of shop-onboard, shop-also"):
            _ = both.output
        assert "2 runs" in repr(both)


async def test_a_wait_goes_no_further_than_it_may() -> None:
    async with TestEngine(client, [onboard]) as engine:
        run = await engine.send(SIGN_UP)
        await engine.advance(days=30)
        with pytest.raises(RunStuckError) as caught:
            await run.wait(max_time=dt.timedelta(days=6))
        assert str(caught.value).startswith("the run did not end: 6d of virtual time have passed")
        assert "step 'login' (WaitForEvent) waiting" in str(caught.value)
        assert "'user/logged.in' if async.data.email == event.data.email" in str(caught.value)
        assert "+30d  login    waits until +37d" in str(caught.value)
        run.assert_no_step("remind")


async def test_until_nothing_is_due_any_more() -> None:
    async with TestEngine(client, [onboard, approve]) as engine:
        runs = await engine.send([SIGN_UP, durably.Event(name="approval/asked")])
        with pytest.raises(RunStuckError, match="still due after 1d"):
            await engine.run_until_idle(max_time=DAY)
        await engine.run_until_idle()
        assert [run.status for run in runs] == [RunStatus.COMPLETED] * 2


async def test_functions_that_wait_for_the_outside_hold_the_clock() -> None:
    opened = asyncio.Event()

    @client.create_function(fn_id="outside", trigger=durably.TriggerEvent(event="outside"))
    async def outside(ctx: durably.Context) -> str:
        return await ctx.step.run("read", read)

    async def read() -> str:
        server = await asyncio.start_server(greet, "127.0.0.1")
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            opened.set()
            line = await reader.readline()
            writer.close()
        return line.decode()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await opened.wait()
        writer.write(b"hello")
        writer.close()

    async with TestEngine(client, [outside, onboard]) as engine:
        start = engine.now
        await engine.send(SIGN_UP)
        run = await engine.send(durably.Event(name="outside"))
        run.assert_completed(output="hello")
        assert engine.now == start


async def test_several_calls_at_once_where_a_test_wants_them() -> None:
    both_there = asyncio.Barrier(2)

    @client.create_function(fn_id="meet", trigger=durably.TriggerEvent(event="meet"))
    async def meet(ctx: durably.Context) -> None:
        await both_there.wait()

    async with TestEngine(client, [meet], calls_at_once=2) as engine:
        first, second = await engine.send([durably.Event(name="meet"), durably.Event(name="meet")])
        first.assert_completed()
        second.assert_completed()


async def test_checkpointing_is_off_unless_asked_for() -> None:
    calls = 0

    @client.create_function(fn_id="steps", trigger=durably.TriggerEvent(event="steps"))
    async def steps(ctx: durably.Context) -> None:
        nonlocal calls
        calls += 1
        for index in range(3):
            await ctx.step.run(f"step-{index}", lambda: None)

    for checkpointing, expected in ((False, 4), (True, 1)):
        calls = 0
        async with TestEngine(client, [steps], checkpointing=checkpointing) as engine:
            run = await engine.send(durably.Event(name="steps"))
            run.assert_completed()
            assert list(run.steps) == ["step-0", "step-1", "step-2"]
        assert calls == expected


async def test_a_sync_function_may_send_events_and_hand_steps_over() -> None:
    @client.create_function(fn_id="sender", trigger=durably.TriggerEvent(event="sender"))
    def sender(ctx: durably.ContextSync) -> list[str]:
        ctx.step.send_event("first", durably.Event(name="approval/asked"))
        return ctx.step.run("second", client.send_sync, durably.Event(name="approval/asked"))

    async with TestEngine(client, [sender, approve], checkpointing=True) as engine:
        run = await engine.send(durably.Event(name="sender"))
        await run.wait()
        assert len(engine.runs(approve)) == 2


async def test_calls_that_would_block_or_never_end_are_refused() -> None:
    @client.create_function(fn_id="selfish", trigger=durably.TriggerEvent(event="selfish"), retries=0)
    async def selfish(ctx: durably.Context) -> None:
        await engine.advance(days=1)

    async with TestEngine(client, [selfish]) as engine:
        with pytest.raises(RuntimeError, match="would block the event loop"):
            client.send_sync(durably.Event(name="selfish"))
        run = await engine.send(durably.Event(name="selfish"))
        run.assert_failed(message="a function under test used its test engine")
        with pytest.raises(RuntimeError, match="in use by another open test engine"):
            async with TestEngine(client, [selfish]):
                pass
    with pytest.raises(RuntimeError, match="is not open"):
        await engine.send(SIGN_UP)


async def test_wrong_options_are_refused_as_by_any_engine() -> None:
    @client.create_function(fn_id="odd", trigger=durably.TriggerCron(cron="@never"), retries=0)
    def odd(ctx: durably.ContextSync) -> None: ...

    engine = TestEngine(client, [odd])
    before = threading.enumerate()
    with pytest.raises(durably.errors.Error, match="shop-odd"):
        async with engine:
            pass
    with pytest.raises(RuntimeError, match="is not open"):
        engine.runs()
    assert client.in_process is None
    for thread in set(threading.enumerate()).difference(before):
        if thread.name.startswith("durably-writer"):
            thread.join(30)
            assert not thread.is_alive()


async def test_calls_that_are_too_large_for_one_body() -> None:
    @client.create_function(fn_id="large", trigger=durably.TriggerEvent(event="large"))
    async def large(ctx: durably.Context) -> int:
        outputs: list[Any] = [await ctx.step.run(f"step-{index}", lambda: "x" * 3_000_000) for index in range(3)]
        return sum(map(len, outputs))

    async with TestEngine(client, [large]) as engine:
        run = await engine.send(durably.Event(name="large"))
        run.assert_completed(output=9_000_000)


async def test_no_time_is_lost_however_much_is_under_way() -> None:
    """Were the clock to continue while a call, a read or a write is under way, something would come too late."""

    @client.create_function(fn_id="naps", trigger=durably.TriggerEvent(event="naps"))
    async def naps(ctx: durably.Context) -> None:
        async def nap(index: int, seconds: int) -> None:
            await ctx.step.sleep(f"nap-{index}", dt.timedelta(seconds=seconds))
            await ctx.step.run(f"woke-{index}", asyncio.sleep, 0)

        await asyncio.gather(*(nap(index, seconds) for index, seconds in enumerate(ctx.event.data["naps"])))

    @client.create_function(fn_id="sync-naps", trigger=durably.TriggerEvent(event="naps"))
    def sync_naps(ctx: durably.ContextSync) -> None:
        for index, seconds in enumerate(ctx.event.data["naps"]):
            ctx.step.sleep(f"nap-{index}", dt.timedelta(seconds=seconds))
            ctx.step.run(f"woke-{index}", str)

    chance = random.Random(7)
    async with TestEngine(client, [naps, sync_naps], calls_at_once=8) as engine:
        start = engine.now
        events = [
            durably.Event(name="naps", data={"naps": [chance.randrange(1, 90) for _ in range(4)]}) for _ in range(30)
        ]
        runs = await engine.send(events)
        await engine.run_until_idle()
        for run in runs:
            due = dt.timedelta(0)
            for index, seconds in enumerate(run.events[0].data["naps"]):
                nap = dt.timedelta(seconds=seconds)
                due = due + nap if run.function_id == sync_naps.id else nap
                assert run.steps[f"nap-{index}"].ended_at == start + due
                assert run.steps[f"woke-{index}"].ended_at == start + due
    assert len(runs) == 60


async def test_fetch_reaches_servers_and_its_retries_take_virtual_time() -> None:
    requests = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        await reader.readuntil(b"\r\n\r\n")
        status = b"503 Later" if requests == 1 else b"200 OK"
        writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi")
        await writer.drain()
        writer.close()

    @client.create_function(fn_id="fetches", trigger=durably.TriggerEvent(event="fetch"))
    async def fetches(ctx: durably.Context) -> str:
        return (await ctx.step.fetch("page", ctx.event.data["url"])).body

    server = await asyncio.start_server(answer, "127.0.0.1")
    async with server, TestEngine(client, [fetches], allow_private_addresses=True) as engine:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        run = await engine.send(durably.Event(name="fetch", data={"url": url}))
        await run.wait()
        run.assert_completed(output="hi")
        assert requests in (1, 2)


async def test_a_clients_own_engine_is_left_alone(tmp_path: Path) -> None:
    own = durably.Client(app_id="own", engine=durably.Embedded(tmp_path / "own.db"))
    engine_of_its_own = own.engine

    @own.create_function(fn_id="f", trigger=durably.TriggerEvent(event="f"))
    async def f(ctx: durably.Context) -> str:
        return "done"

    async with TestEngine(own, [f]) as engine:
        await own.send(durably.Event(name="f"))
        await engine.run_until_idle()
        engine.runs(f)[0].assert_completed(output="done")
    assert own.engine is engine_of_its_own
    assert not (tmp_path / "own.db").exists()


async def test_a_retry_after_a_delay_goes_by_the_engines_clock() -> None:
    @client.create_function(fn_id="later", trigger=durably.TriggerEvent(event="later"))
    async def later(ctx: durably.Context) -> None:
        await ctx.step.sleep("day", DAY)
        if ctx.attempt == 0:
            raise durably.RetryAfterError("later", dt.timedelta(minutes=5))

    async with TestEngine(client, [later]) as engine:
        start = engine.now
        run = await engine.send(durably.Event(name="later"))
        await run.wait()
        run.assert_completed()
        assert engine.now == start + DAY + dt.timedelta(minutes=5)


async def test_an_invoked_functions_data_fits_a_strict_model() -> None:
    class Order(pydantic.BaseModel, extra="forbid"):
        id: int

    placed = durably.EventType("placed", Order)

    @client.create_function(fn_id="invoked", trigger=placed.trigger())
    async def invoked(ctx: durably.Context) -> int:
        return placed.data(ctx.event).id

    @client.create_function(fn_id="invoking", trigger=durably.TriggerEvent(event="invoke"))
    async def invoking(ctx: durably.Context) -> int:
        return await ctx.step.invoke("it", function=invoked, data={"id": 7})

    async with TestEngine(client, [invoked, invoking]) as engine:
        run = await engine.send(durably.Event(name="invoke"))
        await run.wait()
        run.assert_completed(output=7)
