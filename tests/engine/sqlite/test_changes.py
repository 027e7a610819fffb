"""Waiting for changes: what is awaited is never missed, and idle or numerous clients cost little."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from durably.engine.api.codec import HttpEngine
from durably.engine.model.overview import Changes
from durably.engine.model.subscriptions import Group
from durably.engine.sqlite import changes
from durably.engine.sqlite.changes import ChangeFeed
from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.engine_errors import EngineClosedError, TooManyWaitersError

from ..conftest import only_run, run_to_end, send
from ..small_app import SmallApp

ONE = Group(1, 0, 0.0)


async def settled(engine: Any, run_id: str | None = None) -> int:
    """The position after all changes so far."""
    before = (await engine.wait_for_changes(run_id=run_id)).position
    await engine.verify()
    return int((await engine.wait_for_changes(after=before)).position)


async def test_a_wait_ends_when_something_is_committed(engine: SqliteEngine, client: HttpEngine) -> None:
    position = await settled(engine)
    waiting = asyncio.create_task(client.wait_for_changes(after=position))
    await send(engine, "a")
    changed = await waiting
    assert changed.position > position
    again = await client.wait_for_changes(after=position)
    assert again.position >= changed.position


async def test_a_wait_for_one_run_is_not_ended_by_others(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("work")
    def work(steps: Any) -> None:
        steps.wait_for_event("go", "go")

    @app.function("other")
    def other(steps: Any) -> None: ...

    await engine.sync_app(app.sync_request())
    run_id = await only_run(engine, await send(engine, "work"))
    while not [step for step in await engine.run_steps(run_id) if step.id == "go"]:
        await engine.wait_for_changes(after=(await engine.wait_for_changes()).position, run_id=run_id)
    position = (await engine.wait_for_changes(run_id=run_id)).position
    position = (await engine.wait_for_changes(after=position - 1, run_id=run_id)).position
    position = max(position, await settled(engine))
    waiting = asyncio.create_task(engine.wait_for_changes(after=position, run_id=run_id))
    await run_to_end(engine, "other")
    assert (await engine.wait_for_changes(after=position)).position > position
    assert not waiting.done()
    await send(engine, "go")
    assert (await waiting).position > position


async def test_a_position_of_an_earlier_engine_has_changed(engine: SqliteEngine) -> None:
    present = (await engine.wait_for_changes()).position
    assert (await engine.wait_for_changes(after=present + 10_000_000)).position < present + 10_000_000


async def test_a_wait_ends_after_the_longest_time(engine: SqliteEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    position = await settled(engine)
    monkeypatch.setattr(changes, "LONGEST_WAIT_SECONDS", 0.05)
    assert await engine.wait_for_changes(after=position) == Changes(position=position)
    assert await engine.wait_for_changes(after=position, run_id="none") == Changes(position=position)


async def test_waits_end_when_the_engine_closes(engine: SqliteEngine) -> None:
    position = await settled(engine)
    waits = [asyncio.create_task(engine.wait_for_changes(after=position, run_id=run)) for run in (None, "r")]
    await asyncio.sleep(0)
    await engine.close()
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert all(isinstance(each, EngineClosedError | Changes) for each in results)


async def test_the_number_of_waiting_clients_is_limited(
    engine: SqliteEngine, client: HttpEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MOST_WAITERS", 2)
    position = await settled(engine)
    waits = [asyncio.create_task(engine.wait_for_changes(after=position)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(TooManyWaitersError, match="2 clients"):
        await client.wait_for_changes(after=position)
    await send(engine, "a")
    await asyncio.gather(*waits)


class ManualLoop:
    """An event loop's clock and timers, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None], /) -> "ManualLoop":
        self._timers.append((self.now + delay, callback))
        return self

    def cancel(self) -> None:
        self._timers.clear()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [callback for when, callback in self._timers if when <= self.now]
        self._timers = [timer for timer in self._timers if timer[0] > self.now]
        for callback in due:
            callback()


async def test_a_busy_engine_wakes_its_clients_four_times_a_second() -> None:
    loop = ManualLoop()
    feed = ChangeFeed(1, loop)
    position, answers = 1, 0
    waiting = asyncio.create_task(feed.wait(position, None))
    for _ in range(10_000):
        loop.advance(0.001)
        feed.on_commit([], ONE)
        await asyncio.sleep(0)
        if waiting.done():
            answers += 1
            position = waiting.result().position
            waiting = asyncio.create_task(feed.wait(position, None))
    waiting.cancel()
    assert 35 <= answers <= 41
    feed.close()


async def test_unwatched_runs_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_MOST_RUNS", 10)
    feed = ChangeFeed(1, asyncio.get_running_loop())
    for number in range(100):
        await feed.wait(None, f"run-{number}")
    assert len(feed._runs) <= 10
    feed.close()
