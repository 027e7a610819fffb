"""Sync functions of a process share its threads fairly and by priority; a cancelled call frees its slot."""

import asyncio

from durably.embedded.worker import FairLimit


async def hold(
    limit: FairLimit, function_id: str, entered: list[str], release: asyncio.Event, priority: int = 0
) -> None:
    async with limit.slot(function_id, priority):
        entered.append(function_id + str(priority or ""))
        await release.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_functions_share_slots_fairly_and_a_cancelled_call_frees_its_slot() -> None:
    limit, entered, release = FairLimit(2), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(hold(limit, "busy", entered, release)) for _ in range(10)]
    await settle()
    assert entered == ["busy", "busy"]
    tasks.append(asyncio.create_task(hold(limit, "single", entered, release)))
    await settle()
    tasks[3].cancel()  # Waits.
    tasks[0].cancel()  # Is running.
    tasks[1].cancel()
    await settle()
    assert sorted(entered[2:]) == ["busy", "single"]
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert entered.count("busy") == 9
    async with asyncio.timeout(60), limit.slot("a", 0), limit.slot("b", 0):
        pass  # Two slots are free again.


async def test_calls_of_a_function_are_ordered_by_priority() -> None:
    limit, entered, release = FairLimit(1), list[str](), asyncio.Event()
    tasks = []
    for priority in (0, 0, 60_000):
        tasks.append(asyncio.create_task(hold(limit, "f", entered, release, priority)))
        await settle()
    release.set()
    await asyncio.gather(*tasks)
    assert entered == ["f", "f60000", "f"]
