"""What is due when, on a clock that is set by hand."""

import asyncio
from collections.abc import Callable

from durably.engine.embedded.timeline import Timeline


class HandClock:
    def __init__(self) -> None:
        self.time = 0
        self.timers: list[tuple[int, Callable[[], None], HandTimer]] = []

    def now(self) -> int:
        return self.time

    def call_at(self, when: int, callback: Callable[[], None]) -> "HandTimer":
        timer = HandTimer()
        self.timers.append((when, callback, timer))
        return timer

    async def advance_to(self, time: int) -> None:
        self.time = time
        await settle()
        while ready := [entry for entry in self.timers if entry[0] <= self.time]:
            self.timers = [entry for entry in self.timers if entry[0] > self.time]
            for _, callback, timer in sorted(ready, key=lambda entry: entry[0]):
                if not timer.cancelled:
                    callback()
            await settle()


class HandTimer:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class Rows:
    """Stands for the database: everything that is stored, and what was asked of it."""

    def __init__(self, *dues: int, limit: int = 1000) -> None:
        self.dues = sorted(dues)
        self.limit = limit
        self.asked: list[tuple[int, int]] = []

    async def load(self, after: int, until: int) -> tuple[list[tuple[int, str]], int]:
        self.asked.append((after, until))
        await asyncio.sleep(0)
        found = [due for due in self.dues if after < due <= until]
        if len(found) > self.limit:
            last = found[self.limit - 1]
            found, until = [due for due in found if due <= last], last
        return [(due, f"at {due}") for due in found], until


async def test_only_the_near_is_in_memory_and_all_of_it_comes_in_order() -> None:
    clock, rows, seen = HandClock(), Rows(5_000, 59_000, 100_000, 90_000_000), []
    timeline: Timeline[str] = Timeline(clock, rows.load, seen.extend)
    timeline.start()
    await clock.advance_to(0)
    assert rows.asked == [(-1, 60_000)]
    timeline.add(7_000, "added near")
    timeline.add(200_000, "added far: the database has it")
    rows.dues.append(200_000)
    await clock.advance_to(6_000)
    assert seen == ["at 5000"]
    for time in range(10_000, 250_000, 10_000):
        await clock.advance_to(time)
    assert seen == ["at 5000", "added near", "at 59000", "at 100000", "at 200000"]
    assert len(rows.asked) < 10
    timeline.close()


async def test_what_is_long_due_comes_at_once_in_parts() -> None:
    clock, rows, seen = HandClock(), Rows(*range(1, 101), limit=30), []
    clock.time = 1_000_000
    timeline: Timeline[str] = Timeline(clock, rows.load, seen.extend)
    timeline.start()
    await clock.advance_to(1_000_000)
    assert seen == [f"at {due}" for due in range(1, 101)]
    timeline.close()


async def test_what_is_stored_nowhere_is_kept_however_late() -> None:
    clock, rows, seen = HandClock(), Rows(), []
    timeline: Timeline[str] = Timeline(clock, rows.load, seen.extend)
    timeline.start()
    timeline.add(7_200_000, "request", is_stored=False)
    for time in range(0, 7_300_000, 50_000):
        await clock.advance_to(time)
    assert seen == ["request"]
    timeline.close()


async def test_a_failed_read_is_tried_again() -> None:
    clock, rows, seen = HandClock(), Rows(100), []
    failures = 2

    async def load(after: int, until: int) -> tuple[list[tuple[int, str]], int]:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError("disk on fire")
        return await rows.load(after, until)

    timeline: Timeline[str] = Timeline(clock, load, seen.extend)
    timeline.start()
    for time in range(0, 10_000, 500):
        await clock.advance_to(time)
    assert seen == ["at 100"]
    timeline.close()


async def test_after_its_close_nothing_comes() -> None:
    clock, rows, seen = HandClock(), Rows(100), []
    timeline: Timeline[str] = Timeline(clock, rows.load, seen.extend)
    timeline.start()
    await clock.advance_to(0)
    timeline.close()
    timeline.add(50, "late")
    await clock.advance_to(1_000)
    assert seen == []
