"""Timers on a clock that tests set."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from durably.engine.sqlite.timers import Loaded, Timers
from durably.testing.link import VirtualClock


async def advance_to(clock: VirtualClock, time: int) -> None:
    while await clock.advance(until=time):
        pass
    await clock.rest()


class Rows:
    """Stands for the database: everything that is stored, and what was asked of it."""

    def __init__(self, *dues: int, limit: int = 1000) -> None:
        self.dues = sorted(dues)
        self.limit = limit
        self.asked: list[tuple[int, int]] = []

    async def load(self, after: int, until: int) -> Loaded[str]:
        self.asked.append((after, until))
        await asyncio.sleep(0)
        found = sorted(due for due in self.dues if after < due <= until)
        if len(found) > self.limit:
            last = found[self.limit - 1]
            found, until = [due for due in found if due <= last], last
        next_due = min((due for due in self.dues if due > until), default=None)
        return Loaded([(due, f"at {due}") for due in found], until, next_due)


async def test_only_the_near_is_in_memory_and_all_of_it_comes_in_order() -> None:
    clock, rows, seen = VirtualClock(0), Rows(5_000, 59_000, 100_000, 90_000_000), []
    timeline: Timers[str] = Timers(clock, rows.load, seen.extend)
    timeline.start()
    await advance_to(clock, 0)
    assert rows.asked == [(-1, 60_000)]
    timeline.add(7_000, "added near")
    timeline.add(200_000, "added far: the database has it")
    rows.dues.append(200_000)
    await advance_to(clock, 6_000)
    assert seen == ["at 5000"]
    for time in range(10_000, 250_000, 10_000):
        await advance_to(clock, time)
    assert seen == ["at 5000", "added near", "at 59000", "at 100000", "at 200000"]
    assert len(rows.asked) < 10
    timeline.close()


async def test_overdue_timers_fire_at_once_in_batches() -> None:
    clock, rows, seen = VirtualClock(1_000_000), Rows(*range(1, 101), limit=30), []
    timeline: Timers[str] = Timers(clock, rows.load, seen.extend)
    timeline.start()
    await advance_to(clock, 1_000_000)
    assert seen == [f"at {due}" for due in range(1, 101)]
    timeline.close()


async def test_unstored_timers_are_kept_however_late() -> None:
    clock, rows, seen = VirtualClock(0), Rows(), []
    timeline: Timers[str] = Timers(clock, rows.load, seen.extend)
    timeline.start()
    timeline.add(7_200_000, "request", is_stored=False)
    for time in range(0, 7_300_000, 50_000):
        await advance_to(clock, time)
    assert seen == ["request"]
    timeline.close()


async def test_while_nothing_is_due_nothing_is_read() -> None:
    year = 366 * 24 * 3_600_000
    clock, rows, seen = VirtualClock(0), Rows(year), []
    timeline: Timers[str] = Timers(clock, rows.load, seen.extend)
    timeline.start()
    await clock.rest()
    timeline.add(year // 2, "one more")
    rows.dues.append(year // 2)
    woken = 0
    while await clock.advance():
        woken += 1
    assert seen == [f"at {year // 2}", f"at {year}"]
    assert len(rows.asked) == 3
    assert woken < 6
    timeline.close()


@given(
    stored=st.lists(st.integers(0, 400_000), max_size=8),
    added=st.lists(st.tuples(st.integers(0, 400_000), st.integers(0, 200_000)), max_size=12),
    limit=st.integers(2, 5),
)
def test_all_that_is_stored_or_added_comes_when_it_is_due(
    stored: list[int], added: list[tuple[int, int]], limit: int
) -> None:
    async def scenario() -> None:
        clock, rows = VirtualClock(0), Rows(*stored, limit=limit)
        came: dict[str, int] = {}

        def on_due(items: list[str]) -> None:
            for item in items:
                came.setdefault(item, clock.now())

        timeline: Timers[str] = Timers(clock, rows.load, on_due)
        timeline.start()
        for at, delay in sorted(added):
            await advance_to(clock, at)
            rows.dues.append(at + delay)
            timeline.add(at + delay, f"at {at + delay}")
        await advance_to(clock, 1_000_000)
        timeline.close()
        assert came == {f"at {due}": due for due in rows.dues}

    asyncio.run(scenario())


async def test_a_failed_read_is_tried_again() -> None:
    clock, rows, seen = VirtualClock(0), Rows(100), []
    failures = 2

    async def load(after: int, until: int) -> Loaded[str]:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError("disk on fire")
        return await rows.load(after, until)

    timeline: Timers[str] = Timers(clock, load, seen.extend)
    timeline.start()
    for time in range(0, 10_000, 500):
        await advance_to(clock, time)
    assert seen == ["at 100"]
    timeline.close()


async def test_after_its_close_nothing_comes() -> None:
    clock, rows, seen = VirtualClock(0), Rows(100), []
    timeline: Timers[str] = Timers(clock, rows.load, seen.extend)
    timeline.start()
    await advance_to(clock, 0)
    timeline.close()
    timeline.add(50, "late")
    await advance_to(clock, 1_000)
    assert seen == []
