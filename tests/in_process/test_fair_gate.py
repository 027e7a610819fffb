"""Sync functions of a process share its threads: by turns, by priority, and without losing places of lost calls."""

import asyncio

from durably.in_process.worker import FairGate


async def hold(gate: FairGate, function_id: str, entered: list[str], release: asyncio.Event, priority: int = 0) -> None:
    async with gate.through(function_id, priority):
        entered.append(function_id + str(priority or ""))
        await release.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_functions_take_turns_and_a_given_up_call_leaves_its_place() -> None:
    gate, entered, release = FairGate(2), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(hold(gate, "busy", entered, release)) for _ in range(10)]
    await settle()
    assert entered == ["busy", "busy"]
    tasks.append(asyncio.create_task(hold(gate, "single", entered, release)))
    await settle()
    tasks[3].cancel()  # waits
    tasks[0].cancel()  # is under way
    tasks[1].cancel()
    await settle()
    assert sorted(entered[2:]) == ["busy", "single"]
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert entered.count("busy") == 9
    async with asyncio.timeout(60), gate.through("a", 0), gate.through("b", 0):
        pass  # There is room for two again.


async def test_within_a_function_calls_go_by_priority() -> None:
    gate, entered, release = FairGate(1), list[str](), asyncio.Event()
    tasks = []
    for priority in (0, 0, 60_000):
        tasks.append(asyncio.create_task(hold(gate, "f", entered, release, priority)))
        await settle()
    release.set()
    await asyncio.gather(*tasks)
    assert entered == ["f", "f60000", "f"]
