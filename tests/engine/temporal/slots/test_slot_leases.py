"""Processes that lease slots, on a network that delays, loses and reorders requests, in virtual time."""

import asyncio
import random
from collections import Counter

import pytest

from durably.engine.temporal.slots import slot_leases
from durably.engine.temporal.slots.slot_leases import (
    LEASE_SECONDS,
    USE_SECONDS,
    SlotLeases,
    SlotLostError,
    SlotsClosedError,
)
from durably.engine.temporal.slots.slot_messages import LeaseAnswer, LeaseRequest, SlotsState
from durably.engine.temporal.slots.slot_pools import SlotPools

from .virtual_time import run_in_virtual_time

FUNCTION = "app-work"


class Owner:
    """The slots, as their workflow keeps them."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.pools = SlotPools(SlotsState())
        self.updates = 0
        self._waiting: dict[str, int] = {}
        self._changed = asyncio.Condition()

    async def lease(self, request: LeaseRequest) -> LeaseAnswer:
        self.updates += 1
        self.pools.expire(self.now)
        if not self.pools.accept(request, self.now):
            return LeaseAnswer(is_lost=True)
        self._waiting[request.process] = request.number
        self._grant()
        async with self._changed:
            self._changed.notify_all()
            await self._changed.wait_for(lambda: not self.pools.waits(request))
        if self._waiting.get(request.process) == request.number:
            del self._waiting[request.process]
        return self.pools.answer(request.process, self.now)

    async def expire(self) -> None:
        """Free the slots of ended leases, as the workflow's timer does."""
        while True:
            await asyncio.sleep(5)
            self.pools.expire(self.now)
            self._grant()
            async with self._changed:
                self._changed.notify_all()

    async def read_limit(self, _: str) -> int | None:
        return self.limit

    def _grant(self) -> None:
        self.pools.grant(self._waiting, self.now)

    @property
    def now(self) -> int:
        return round(asyncio.get_running_loop().time() * 1000)


class World:
    """``inside`` are the calls with a slot, by process."""

    def __init__(self, limit: int | None, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.owner = Owner(limit)
        self.inside: Counter[str] = Counter()
        self.most = 0
        self.ended: Counter[str] = Counter()
        self.lost = 0
        self.disturbance = 0.0
        self.away: set[str] = set()

    def process(self, name: str) -> SlotLeases:
        async def send(request: LeaseRequest) -> LeaseAnswer:
            answering = asyncio.ensure_future(self._deliver(name, request))  # It goes on if the process gives up.
            answer = await asyncio.shield(answering)
            await self._travel(name)
            return answer

        leases = SlotLeases(send, self.owner.read_limit, 100)
        leases.add(FUNCTION)
        return leases

    async def _deliver(self, name: str, request: LeaseRequest) -> LeaseAnswer:
        await self._travel(name)
        return await self.owner.lease(request)

    async def _travel(self, name: str) -> None:
        if name in self.away or self.random.random() < self.disturbance / 4:
            raise ConnectionError("lost")
        is_late = self.random.random() < self.disturbance
        await asyncio.sleep(self.random.uniform(0, 70) if is_late else 0.01)

    async def call(self, name: str, leases: SlotLeases, seconds: float) -> None:
        """One call: it is repeated until it ends with its slot."""
        while True:
            try:
                async with leases.slot(FUNCTION, 60):
                    self.inside[name] += 1
                    self.most = max(self.most, self.inside.total())
                    try:
                        await asyncio.sleep(seconds)
                    finally:
                        self.inside[name] -= 1
                self.ended[name] += 1
                return
            except SlotLostError:
                self.lost += 1
            except SlotsClosedError:
                await asyncio.sleep(1)


@pytest.fixture(autouse=True)
def virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        @staticmethod
        def monotonic() -> float:
            return asyncio.get_running_loop().time()

    monkeypatch.setattr(slot_leases, "time", Clock)


@pytest.mark.parametrize(
    ("limit", "processes", "seconds"), [(4, 2, 0.5), (3, 3, 2.0), (1, 3, 0.5), (2, 2, 30.0), (4, 4, 30.0)]
)
def test_processes_under_load_keep_their_leases(limit: int, processes: int, seconds: float) -> None:
    """They always need more slots than are free, so their renewals wait for slots."""

    async def main() -> None:
        world = World(limit)
        expiring = asyncio.create_task(world.owner.expire())

        async def work(name: str, leases: SlotLeases) -> None:
            while True:
                await world.call(name, leases, seconds)

        all_leases = {f"p{n}": world.process(f"p{n}") for n in range(processes)}
        working = [asyncio.create_task(work(*each)) for each in all_leases.items() for _ in range(limit + 1)]
        await asyncio.sleep(150)
        assert world.lost == 0
        assert world.most == limit
        assert world.ended.total() >= 0.9 * limit * (150 // seconds - 1)
        for task in [expiring, *working]:
            task.cancel()
        await asyncio.gather(expiring, *working, return_exceptions=True)

    run_in_virtual_time(main())


@pytest.mark.parametrize("seed", [0, 2, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(3, 60))])
def test_the_limit_is_never_passed(seed: int) -> None:
    async def main() -> None:
        world = World(limit := 1 + seed % 5, seed)
        expiring = asyncio.create_task(world.owner.expire())
        processes = {f"p{n}": world.process(f"p{n}") for n in range(3)}
        world.disturbance = 0.3 * (seed % 3)

        async def work(name: str) -> None:
            for _ in range(6):
                await asyncio.sleep(world.random.choice([0, 0, 0.5, 30]))
                seconds = world.random.choice([0.01, 0.5, 8, 25])
                await world.call(name, processes[name], seconds)

        async def cut_off() -> None:
            while True:
                await asyncio.sleep(world.random.uniform(5, 60))
                world.away = set(world.random.sample(sorted(processes), 1))
                await asyncio.sleep(world.random.uniform(5, 60))
                world.away = set()

        cutting = asyncio.create_task(cut_off())
        await asyncio.gather(*(work(name) for name in processes for _ in range(3)))
        cutting.cancel()
        expiring.cancel()
        assert world.most <= limit
        assert world.ended.total() == 3 * 3 * 6

    run_in_virtual_time(main())


def test_requests_depend_on_processes_and_not_on_calls() -> None:
    async def main() -> None:
        world = World(limit=10)
        processes = {name: world.process(name) for name in ("p0", "p1")}

        async def work(name: str) -> None:
            for _ in range(150):
                await world.call(name, processes[name], 0.1)

        await asyncio.gather(*(work(name) for name in processes for _ in range(6)))
        assert world.most == 10
        assert world.ended.total() == 1800
        assert world.owner.updates < 30

    run_in_virtual_time(main())


def test_the_slots_of_a_dead_process_come_back() -> None:
    async def main() -> None:
        world = World(limit=2)
        expiring = asyncio.create_task(world.owner.expire())
        dead, alive = world.process("dead"), world.process("alive")
        calls = [asyncio.create_task(world.call("dead", dead, 1000)) for _ in range(2)]
        await asyncio.sleep(1)
        await _kill(world, dead, calls)
        before = asyncio.get_running_loop().time()
        await asyncio.gather(*(world.call("alive", alive, 1) for _ in range(2)))
        assert asyncio.get_running_loop().time() - before < LEASE_SECONDS + 10
        expiring.cancel()

    run_in_virtual_time(main())


async def _kill(world: World, leases: SlotLeases, calls: list[asyncio.Task[None]]) -> None:
    world.away.add("dead")
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await leases.close()


def test_a_slot_whose_step_may_go_on_after_the_stop_is_free_at_the_end_of_the_lease() -> None:
    async def main() -> None:
        world = World(2)
        expiring = asyncio.create_task(world.owner.expire())
        first, second = world.process("first"), world.process("second")
        calls = [asyncio.create_task(world.call("first", first, seconds)) for seconds in (5, 100)]
        await asyncio.sleep(6)
        first._pools[FUNCTION].calls.close()
        calls[1].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await first.close()
        others = [asyncio.create_task(world.call("second", second, 1)) for _ in range(4)]
        await asyncio.sleep(LEASE_SECONDS - 10)
        assert world.most <= 2
        assert world.owner.pools.answer("second", world.owner.now).functions.keys() <= {FUNCTION}
        in_use = [each.holdings[FUNCTION].slots for each in world.owner.pools.state.processes.values()]
        assert in_use[0] == 1, "the step that may go on"
        await asyncio.gather(*others)
        await asyncio.sleep(15)
        assert len(world.owner.pools.state.processes) <= 1
        await second.close()
        expiring.cancel()

    run_in_virtual_time(main())


def test_a_call_ends_with_the_lease_of_its_process() -> None:
    async def main() -> None:
        world = World(limit=1)
        leases = world.process("p")
        call = asyncio.create_task(world.call("p", leases, 1000))
        await asyncio.sleep(1)
        assert world.inside["p"] == 1
        world.away.add("p")
        await asyncio.sleep(USE_SECONDS + 1)
        assert (world.inside["p"], world.lost) == (0, 1)
        call.cancel()

    run_in_virtual_time(main())


def test_calls_are_repeated_if_the_owner_has_lost_its_state() -> None:
    async def main() -> None:
        world = World(limit=1)
        leases = world.process("p")
        call = asyncio.create_task(world.call("p", leases, 10))
        await asyncio.sleep(1)
        world.owner.pools = SlotPools(SlotsState())
        await asyncio.sleep(USE_SECONDS / 3)
        assert world.lost == 1
        await call
        assert world.most == 1

    run_in_virtual_time(main())


def test_two_processes_share_one_slot() -> None:
    async def main() -> None:
        world = World(limit=1)
        processes = {name: world.process(name) for name in ("p0", "p1")}

        async def work(name: str) -> None:
            for _ in range(200):
                await world.call(name, processes[name], 0.2)

        working = [asyncio.create_task(work(name)) for name in processes]
        await asyncio.sleep(40)
        assert min(world.ended[name] for name in processes) > 50
        await asyncio.gather(*working)
        assert world.most == 1
        assert world.owner.updates < 60

    run_in_virtual_time(main())


def test_a_changed_limit_applies_with_the_next_renewal() -> None:
    async def main() -> None:
        world = World(limit=6)
        processes = {name: world.process(name) for name in ("p0", "p1")}

        async def work(name: str) -> None:
            while True:
                await world.call(name, processes[name], 0.3)

        working = [asyncio.create_task(work(name)) for name in processes for _ in range(5)]
        for limit in (2, None, 3):
            world.owner.limit = limit
            await asyncio.sleep(15 * USE_SECONDS / 20)
            world.most = 0
            await asyncio.sleep(5)
            assert world.most == (limit or 10)
        for task in working:
            task.cancel()

    run_in_virtual_time(main())


def test_a_process_without_calls_holds_no_slot() -> None:
    async def main() -> None:
        world = World(limit=4)
        leases = world.process("p")
        await asyncio.gather(*(world.call("p", leases, 1) for _ in range(4)))
        await asyncio.sleep(3 * USE_SECONDS)
        assert world.owner.pools.is_empty
        updates = world.owner.updates
        await asyncio.sleep(3600)
        assert world.owner.updates == updates

    run_in_virtual_time(main())
