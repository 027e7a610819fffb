"""``follow``: what a listener of a run sees, in the leader and in a follower."""

import asyncio
import datetime as dt
import multiprocessing
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

import durably
from durably import Client, Context, ContextSync, Embedded, Event, TriggerEvent
from durably.comm import CommHandler
from durably.engine.model.settings import EngineSettings
from durably.errors import EngineNotStartedError, EngineStoppingError, RunNotFoundError
from durably.protocol.channels import MAX_MESSAGE_BYTES, NewMessage
from durably.streams import MAX_QUEUED, Listener, StreamMessage, follow

from ..waiting import async_eventually

SETTINGS = EngineSettings(close_grace=dt.timedelta(0))


def serve(engine: Embedded) -> Client:
    client = Client(app_id="app", engine=engine, is_production=False)

    def count() -> None:
        for number in range(3):
            durably.publish("words", number)

    @client.create_function(fn_id="talk", trigger=TriggerEvent(event="talk"))
    async def talk(ctx: Context) -> str:
        ctx.publish("words", "before")
        ctx.progress(0.25, "first")
        await ctx.step.run("first", lambda: 1)
        await ctx.step.wait_for_signal("go", signal=ctx.run_id, timeout=dt.timedelta(hours=1))
        await ctx.step.run("second", count)
        ctx.progress(1.0)
        return "done"

    @client.create_function(fn_id="talk-sync", trigger=TriggerEvent(event="talk-sync"))
    def talk_sync(ctx: ContextSync) -> int:
        ctx.step.run("count", count)
        ctx.publish("words", {"to": "all"}, channel="everybody")
        ctx.progress(0.5)
        ctx.progress(1, "all of it")
        return 3

    @client.create_function(fn_id="refused", trigger=TriggerEvent(event="refused"), retries=0)
    async def refused(ctx: Context) -> list[str]:
        half = "caf\udce9.csv"  # as os.listdir returns names that are not UTF-8

        def publish() -> list[str]:
            errors = []
            for topic, data in (("$run", 1), ("", 1), (half, 1), ("t", object()), ("t", "x" * MAX_MESSAGE_BYTES)):
                try:
                    ctx.publish(topic, data)
                except Exception as error:
                    errors.append(str(error))
            try:
                ctx.progress(1.5)
            except Exception as error:
                errors.append(str(error))
            ctx.progress(0.5, half)
            return errors

        errors = await ctx.step.run("publish", publish)
        await ctx.step.wait_for_signal("go", signal=ctx.run_id, timeout=dt.timedelta(hours=1))
        return errors

    @client.create_function(fn_id="pool", trigger=TriggerEvent(event="pool"))
    def pool(ctx: ContextSync) -> list[str]:
        def work() -> list[str]:
            with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as processes:
                return list(processes.map(publish_in_a_pool, [1]))

        return ctx.step.run("work", work)

    @client.create_function(fn_id="last", trigger=[], debounce=durably.Debounce(period=1_000))
    async def last(ctx: Context) -> str:
        return "done"

    CommHandler(client=client, framework="test", functions=[talk, talk_sync, refused, pool, last])
    return client


@pytest.fixture(params=["the leader", "a follower"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    engines = [Embedded(tmp_path / "durably.db", settings=SETTINGS) for _ in range(2)]
    clients = [serve(engine) for engine in engines]
    async with engines[0].running(), engines[1].running():
        yield clients[0 if request.param == "the leader" else 1]


def shown(messages: list[StreamMessage]) -> list[Any]:
    data = {"$run": "status", "$step": "status", "$progress": "fraction"}
    return [(each.topic, each.data[data[each.topic]] if each.topic in data else each.data) for each in messages]


async def test_a_listener_sees_the_state_the_kept_messages_and_the_end(client: Client) -> None:
    engine = client.engine
    assert isinstance(engine, Embedded)
    [event_id] = await client.send(Event(name="talk"))
    [run] = await async_eventually(
        lambda: engine.event_runs(event_id), "the run waits", is_right=lambda runs: runs and runs[0].waiting
    )
    run_id, messages = run.id, []
    async with asyncio.timeout(10):
        async for each in follow(client, run_id):
            messages.append(each)
            if each.data == "before":
                await engine.signal(run_id)
    assert shown(messages) == [
        ("$run", "Running"),
        ("$progress", 0.25),
        ("$step", "completed"),
        ("$step", "waiting"),
        ("words", "before"),
        ("$step", "completed"),
        ("words", 0),
        ("words", 1),
        ("words", 2),
        ("$step", "completed"),
        ("$progress", 1.0),
        ("$run", "Completed"),
    ]
    assert messages[-1].data["output"] == "done"
    ids = [int(each.id.removesuffix("-end")) for each in messages[4:]]
    assert ids == sorted(ids)
    # after the end: the kept messages, then the end
    again = [each async for each in follow(client, run_id, topics=["words", "$run"])]
    assert shown(again) == [("words", "before"), ("words", 0), ("words", 1), ("words", 2), ("$run", "Completed")]
    rest = [each async for each in follow(client, run_id, topics=["words"], last_event_id=messages[6].id)]
    assert [each.data for each in rest] == [1, 2]
    assert [each async for each in follow(client, run_id, last_event_id=again[-1].id)] == []


async def run_of(client: Client, name: str) -> str:
    engine = client.engine
    assert isinstance(engine, Embedded)
    [event_id] = await client.send(Event(name=name))
    [run] = await async_eventually(lambda: engine.event_runs(event_id), "the run")
    return run.id


async def test_a_sync_function_publishes_and_a_thread_follows(client: Client) -> None:
    run_id = await run_of(client, "talk-sync")
    handle = client.run(run_id)
    messages = await asyncio.to_thread(lambda: list(handle.stream_sync(["words", "$run", "$progress"])))
    assert [each.data for each in messages if each.topic == "words"] == [0, 1, 2]
    assert messages[-1].data["status"] == "Completed"
    progress = (await handle.status()).progress
    assert progress is not None
    assert (progress.fraction, progress.message) == (1, "all of it")
    async for each in follow(client, "everybody"):
        assert (each.topic, each.data) == ("words", {"to": "all"})
        break


async def test_what_cannot_be_published_is_refused_with_its_name(client: Client) -> None:
    handle = client.run(await run_of(client, "refused"))
    async for each in handle.stream(["$progress"]):
        assert each.data["message"] == "caf?.csv"
        break
    assert await async_eventually(lambda: handle.signal(handle.id), "the run waits")
    names = ("$run", "topic", "caf\\udce9.csv", "publish('t')", "524288", "1.5")
    assert all(name in error for error, name in zip(await handle.result(), names, strict=True))
    with pytest.raises(RuntimeError, match="outside of a run"):
        durably.publish("t", 1)


def publish_in_a_pool(_: int) -> str:
    try:
        durably.publish("words", 1)
    except RuntimeError as error:
        return str(error)
    return ""


async def test_a_forked_process_cannot_publish(client: Client) -> None:
    [error] = await client.run(await run_of(client, "pool")).result()
    assert "a process that these start" in error


@pytest.mark.parametrize("last_event_id", [None, "7531198977568407561"])
async def test_the_stream_of_an_unknown_run_fails(client: Client, last_event_id: str | None) -> None:
    with pytest.raises(RunNotFoundError, match="01ARZ3NDEKTSV4RRFFQ69G5FAV"):
        async for _ in client.run("01ARZ3NDEKTSV4RRFFQ69G5FAV").stream(last_event_id=last_event_id):
            pass


async def test_a_late_listener_of_a_run_that_has_published_much_gets_its_state(client: Client) -> None:
    engine = client.engine
    assert isinstance(engine, Embedded)
    handle = client.run(await run_of(client, "talk"))
    await async_eventually(handle.status, "the run waits", is_right=lambda run: run.waiting and run.progress)
    word = NewMessage(handle.id, "many", msgspec.Raw(b"1"))
    await engine.publish_messages([word] * (MAX_QUEUED + 1))
    seen = []
    async for each in handle.stream():
        seen.append(each.topic)
        if seen.count("many") == MAX_QUEUED:
            break
    assert seen[:4] == ["$gap", "$run", "$progress", "$step"]


async def test_a_second_listener_gets_more_than_one_answer_can_have(client: Client) -> None:
    engine = client.engine
    assert isinstance(engine, Embedded)
    handle = client.run(await run_of(client, "talk"))
    first = handle.stream()
    await anext(first)
    large = msgspec.Raw(msgspec.json.encode("x" * 300_000))
    for _ in range(4):
        await engine.publish_messages([NewMessage(handle.id, "large", large)])
    number = 0
    async for each in handle.stream():
        number += each.topic == "large"
        if number == 3:  # All that are kept.
            break
    await first.aclose()


async def test_a_run_that_was_held_back_is_followed_by_the_id_of_its_event(client: Client) -> None:
    engine = client.engine
    assert isinstance(engine, Embedded)
    event_id = (await engine.invoke("app-last")).event_id
    with pytest.raises(RunNotFoundError, match="flow control"):
        async for _ in client.run(event_id).stream():
            pass
    assert await engine.inspect_run(event_id) is None
    run = await client.run(event_id).status()
    await client.run(event_id).result()
    assert shown([each async for each in client.run(event_id).stream()]) == [("$run", "Completed")]
    report = await engine.inspect_run(event_id)
    assert report is not None
    assert report.run.id != run.id == event_id


async def test_a_slow_listener_loses_messages_and_others_none(client: Client) -> None:
    engine = client.engine
    assert isinstance(engine, Embedded)
    slow, fast = Listener(client, "news"), Listener(client, "news")
    await slow.open()
    await fast.open()
    seen: list[int] = []
    for number in range(30):
        await engine.publish_messages([NewMessage("news", "t", msgspec.Raw(b"%d" % number))] * 100)
        while len(seen) < 100 * (number + 1):
            seen += [each.data for each in await fast.read()]
    assert seen == [number for number in range(30) for _ in range(100)]
    batch = await slow.read()
    assert len(batch) == MAX_QUEUED + 1
    assert (batch[0].topic, batch[1].data, batch[-1].data) == ("$gap", 20, 29)
    assert "too slowly" in batch[0].data["reason"]
    slow.close()
    fast.close()


async def test_listeners_that_join_while_messages_arrive_miss_none(client: Client) -> None:
    engine = client.engine
    assert isinstance(engine, Embedded)

    async def read(channel: str) -> list[int]:
        found: list[int] = []
        async for each in follow(client, channel):
            found.append(each.data)
            if each.data == 300:
                return found
        raise AssertionError

    reading = []
    for number in range(1, 301):
        messages = [NewMessage(f"news-{channel}", "t", msgspec.Raw(b"%d" % number)) for channel in range(10)]
        await engine.publish_messages(messages)
        reading += [asyncio.create_task(read(each.channel)) for each in messages if number <= 50]
    async with asyncio.timeout(30):
        found = await asyncio.gather(*reading)
    assert [each for each in found if each != list(range(1, 301))] == []


async def test_listeners_are_woken_in_turns_that_leave_time_to_functions(client: Client) -> None:
    engine = client.engine
    assert isinstance(engine, Embedded)
    loop = asyncio.get_running_loop()
    listeners = [Listener(client, "news", topics=["t"]) for _ in range(500)]
    for listener in listeners:
        await listener.open()
    turns, woken = 0, list[int]()

    def take_turn() -> None:
        nonlocal turns
        turns += 1
        if len(woken) < len(listeners):
            loop.call_soon(take_turn)

    async def read(listener: Listener) -> None:
        assert [each.data for each in await listener.read()] == [1]
        woken.append(turns)

    reading = [loop.create_task(read(listener)) for listener in listeners]
    await asyncio.sleep(0)
    loop.call_soon(take_turn)
    await engine.publish_messages(
        [NewMessage("news", "other", msgspec.Raw(b"0")), NewMessage("news", "t", msgspec.Raw(b"1"))]
    )
    async with asyncio.timeout(30):
        await asyncio.gather(*reading)
    assert len(set(woken)) >= 10
    for listener in listeners:
        listener.close()


async def test_a_listener_goes_on_with_the_next_leader_after_a_gap(tmp_path: Path) -> None:
    engines = [Embedded(tmp_path / "durably.db", settings=SETTINGS) for _ in range(2)]
    clients = [serve(engine) for engine in engines]
    async with engines[0].running(), engines[1].running():
        run_id = await run_of(clients[1], "talk")
        stream = clients[1].run(run_id).stream()
        found = [await anext(stream)]
        while found[-1].topic != "words":
            found.append(await anext(stream))
        await async_eventually(
            lambda: engines[1].get_run(run_id), "the run waits", is_right=lambda run: run is not None and run.waiting
        )
        await engines[0].stop()
        while found[-1].topic != "$gap":
            found.append(await anext(stream))
        assert "restarted" in found[-1].data["reason"]
        await async_eventually(lambda: engines[1].signal(run_id), "the run waits")
        rest = [each async for each in stream]
        assert shown(rest)[:2] == [("$run", "Running"), ("$progress", 0.25)]
        assert [each.data for each in rest if each.topic == "words"] == [0, 1, 2]
        assert shown(rest)[-1] == ("$run", "Completed")


async def test_a_listener_does_not_start_a_stopped_engine_again(tmp_path: Path) -> None:
    engine = Embedded(tmp_path / "durably.db", settings=SETTINGS)
    client = serve(engine)
    async with engine.running():
        left = Listener(client, "news")
        await left.open()
        left.close()
        reading = Listener(client, "news")
        await reading.open()
        waiting = asyncio.ensure_future(reading.read())
    with pytest.raises((EngineStoppingError, EngineNotStartedError)):  # The latter if it asks after the stop, in tests.
        await waiting
    assert engine._process._node is None
    reading.close()
    async with engine.running():
        again = Listener(client, "news")
        await again.open()
        await engine.publish_messages([NewMessage("news", "t", msgspec.Raw(b"1"))])
        assert [each.data for each in await again.read()] == [1]
        again.close()
