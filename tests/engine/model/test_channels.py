"""The hub of channels: what it keeps, what it frees, and what it tells readers that missed something."""

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from durably.engine.model import channels as module
from durably.engine.model.channels import Channels
from durably.engine.model.runs import Run, RunStatus, Step
from durably.protocol.channels import MAX_MESSAGE_BYTES, MessageBatch, NewMessage
from durably.protocol.engine_errors import EngineClosedError, EventInvalidError, TooLargeError

RUN_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


class Loop:
    """A clock that a test advances, with its timers."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        self.timers.append((self.now + delay, callback))
        return self

    def cancel(self) -> None: ...

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while due := sorted((each for each in self.timers if each[0] <= until), key=lambda each: each[0]):
            self.timers.remove(due[0])
            self.now = due[0][0]
            due[0][1]()
        self.now = until


class Hub:
    def __init__(self, start: int = 1_000_000) -> None:
        self.loop = Loop()
        self.channels = Channels(lambda: start, self.loop)
        self.loaded: list[str] = []
        self.run: Run | None = None

    def publish(self, channel: str, *values: Any) -> None:
        encoded = [msgspec.Raw(msgspec.json.encode(value)) for value in values]
        self.channels.publish([NewMessage(channel, "t", value) for value in encoded])

    async def _load(self, run_id: str) -> tuple[Run, list[Step]] | None:
        self.loaded.append(run_id)
        return None if self.run is None else (self.run, [])

    async def read(self, *names: str, after: int = 0, waits: bool = False, reader: str | None = None) -> MessageBatch:
        return await self.channels.read(dict.fromkeys(names, after), self._load, waits=waits, reader=reader)


def shown(batch: MessageBatch) -> list[Any]:
    return ["gap" if each.topic == "$gap" else msgspec.json.decode(each.data) for each in batch.messages]


async def test_readers_get_what_is_kept_and_then_what_is_new() -> None:
    hub = Hub()
    hub.publish("a", 1, 2)
    hub.publish("b", 3)
    first = await hub.read("a", "b")
    assert shown(first) == [1, 2, 3]
    assert [each.id for each in first.messages] == sorted(each.id for each in first.messages)
    assert shown(await hub.read("a", after=first.messages[0].id)) == [2]
    reading = asyncio.create_task(hub.read("a", "b", after=first.position, waits=True))
    await asyncio.sleep(0)
    hub.publish("c", 0)
    assert not reading.done()
    hub.publish("b", 4)
    hub.publish("a", 5)
    assert shown(await reading) == [4, 5], "it gathers for a moment, so that many messages are one answer"


async def test_a_read_of_the_same_reader_ends_the_earlier_one() -> None:
    hub = Hub()
    reading = asyncio.create_task(hub.read("a", waits=True, reader="r"))
    await asyncio.sleep(0)
    await hub.read(reader="r")
    assert shown(await reading) == []
    closing = asyncio.create_task(hub.read("a", waits=True))
    await asyncio.sleep(0)
    hub.channels.close()
    with pytest.raises(EngineClosedError):
        await closing


@pytest.mark.parametrize(("limit", "value"), [("MAX_KEPT_MESSAGES", "x"), ("_MAX_CHANNEL_SIZE", "x" * 1000)])
async def test_a_channel_keeps_its_newest_messages(monkeypatch: pytest.MonkeyPatch, limit: str, value: str) -> None:
    monkeypatch.setattr(module, limit, 3 if limit == "MAX_KEPT_MESSAGES" else 5000)
    hub = Hub()
    hub.publish("a", value)
    position = (await hub.read("a")).position
    hub.publish("a", *[value] * 10)
    kept = await hub.read("a", after=position)
    assert shown(kept) == ["gap", *[value] * 3]
    assert "newest messages" in bytes(kept.messages[0].data).decode()
    assert shown(await hub.read("a")) == ["gap", *[value] * 3], "also for one that has seen nothing"
    assert shown(await hub.read("a", after=kept.messages[1].id)) == [value] * 2


async def test_all_channels_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOTAL_BYTES", 20_000)
    hub = Hub()
    for number in range(100):
        hub.publish(f"c{number % 50}", "x" * 1000)
    assert hub.channels.size <= 20_000
    assert shown(await hub.read("c49")) == ["gap", "x" * 1000], "the one that was silent for the longest loses first"


async def test_channels_that_nobody_uses_are_freed() -> None:
    hub = Hub()
    hub.publish("a", 1)
    position = (await hub.read("a", "nothing")).position
    hub.publish("a", 2)
    hub.loop.advance(100)
    assert len(hub.channels) == 1
    assert shown(await hub.read("a", after=position)) == [2]
    hub.loop.advance(module.IDLE_SECONDS + 100)
    assert (len(hub.channels), hub.channels.size) == (0, 0)
    assert shown(await hub.read("a", after=position)) == ["gap"]
    assert shown(await hub.read("a")) == []


async def test_a_position_of_another_engine_is_recognised() -> None:
    before, after = Hub(1_000_000), Hub(1_000_001)
    before.publish("a", 1)
    position = (await before.read("a")).position
    after.publish("a", 2)
    batch = await after.read("a", after=position)
    assert shown(batch) == ["gap", 2]
    assert "restarted" in bytes(batch.messages[0].data).decode()
    late = (await after.read("a")).position
    assert shown(await before.read("a", after=late)) == ["gap", 1], "clocks of machines differ"


async def test_the_state_of_a_run_is_read_once_for_readers_that_stay() -> None:
    hub = Hub()
    position = (await hub.read(RUN_ID)).position
    assert hub.loaded == [RUN_ID]
    await hub.read(RUN_ID, after=position)
    assert hub.loaded == [RUN_ID]
    hub.loop.advance(60)
    assert not hub.channels.is_followed(RUN_ID)
    await hub.read(RUN_ID, after=position)
    assert hub.loaded == [RUN_ID, RUN_ID], "changes in between were not recorded"


async def test_messages_about_a_run_displace_nothing_that_it_has_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT_MESSAGES", 3)
    hub = Hub()
    position = (await hub.read(RUN_ID)).position
    hub.publish(RUN_ID, "a")
    for number in range(10):
        hub.channels.add_own(RUN_ID, "$progress", number)
    hub.publish(RUN_ID, "b")
    hub.run = Run(id=RUN_ID, function_id="f", status=RunStatus.RUNNING, created_at=dt.datetime.now(dt.UTC))
    behind = await hub.read(RUN_ID, after=position)
    assert [each.topic for each in behind.messages] == ["$run", "t", "t"], "the state, and no gap"
    hub.channels.add_own(RUN_ID, "$progress", 10)
    assert shown(await hub.read(RUN_ID, after=behind.position)) == [10]
    assert hub.loaded == [RUN_ID, RUN_ID]


async def test_a_large_answer_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_BATCH_BYTES", 3000)
    hub = Hub()
    for number in range(4):
        hub.publish("a", str(number) * 1000)
        hub.publish("b", str(number) * 1000)
    found, batch = [], await hub.read("a", "b")
    while batch.has_more:
        found += shown(batch)
        batch = await hub.read("a", "b", after=batch.position)
    found += shown(batch)
    assert [each[0] for each in found] == list("00112233")


def test_what_is_refused() -> None:
    hub = Hub()
    for name in ("", "x" * 513):
        with pytest.raises(EventInvalidError):
            hub.channels.publish([NewMessage("good", "t", msgspec.Raw(b"1")), NewMessage(name, "t", msgspec.Raw(b"1"))])
    with pytest.raises(TooLargeError, match="'t'"):
        hub.publish("a", "x" * MAX_MESSAGE_BYTES)
    assert len(hub.channels) == 0, "all or none"


@pytest.mark.parametrize("ends", [False, True])
async def test_what_happens_while_the_state_of_a_run_is_loaded_follows_it(ends: bool) -> None:
    hub = Hub()
    at = dt.datetime.now(dt.UTC)
    run = Run(
        id=RUN_ID,
        function_id="shop-place",
        app_id="shop",
        status=RunStatus.RUNNING,
        event_ids=["e"],
        event_id="e",
        event_name="placed",
        created_at=at,
    )

    async def load(run_id: str) -> tuple[Run, list[Step]]:
        if ends:
            hub.channels.add_own(run_id, "$run", {"status": "Completed"})
            hub.channels.end(run_id)
        else:
            hub.channels.add_own(run_id, "$progress", {"fraction": 0.5})
        return run, []

    batch = await hub.channels.read({RUN_ID: 0}, load, waits=False)
    after = {"status": "Completed"} if ends else {"fraction": 0.5}
    assert shown(batch) == [{"status": "Running", "function_id": "shop-place"}, after]
    assert batch.ended == ([RUN_ID] if ends else [])
