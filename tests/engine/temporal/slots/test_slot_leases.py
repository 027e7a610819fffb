"""Processes that lease slots, on a network that delays, loses and reorders requests, in virtual time."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Self

import pytest

from durably.engine.temporal.runs.activities import returned_call
from durably.engine.temporal.slots import lease_time
from durably.engine.temporal.slots.lease_time import LEASE_SECONDS, USE_SECONDS
from durably.engine.temporal.slots.slot_leases import ProcessSlots, SlotLeases, SlotLostError, SlotsClosedError
from durably.engine.temporal.slots.slot_pools import LeaseAnswer, LeaseRequest, SlotPools, SlotsState, WaitingRequests
from durably.engine.temporal.slots.slots_workflow import MOST_WAITING

from .virtual_time import run_in_virtual_time

FUNCTION = "app-work"


class Owner:
    """The slots, as their workflow stores them."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.pools = SlotPools(SlotsState())
        self.updates = 0
        self._waiting = WaitingRequests(self.pools, MOST_WAITING)
        self._changed = asyncio.Condition()

    async def lease(self, request: LeaseRequest) -> LeaseAnswer:
        self.updates += 1
        self.pools.expire(self.now)
        if not self.pools.accept(request, self.now):
            return LeaseAnswer(is_lost=True)
        if self.pools.number_of(request.process) in (None, request.number):
            self._waiting.remove(request.process)
            self._grant(request.process)
        async with self._changed:
            self._changed.notify_all()
            if self.pools.waits(request):
                self._waiting.add(request)
                self._changed.notify_all()
                await self._changed.wait_for(lambda: not (self._waiting.has(request) and self.pools.waits(request)))
                if self._waiting.has(request):
                    self._waiting.remove(request.process)
        return self.pools.answer(request.process, self.now)

    async def expire(self) -> None:
        """Free the slots of ended leases, as the workflow's timer does."""
        while True:
            await asyncio.sleep(5)
            self.pools.expire(self.now)
            self._grant()
            async with self._changed:
                self._changed.notify_all()

    def forget(self) -> None:
        self.pools = SlotPools(SlotsState())
        self._waiting = WaitingRequests(self.pools, MOST_WAITING)

    async def read_limit(self, _: str) -> int | None:
        return self.limit

    def _grant(self, *processes: str) -> None:
        self.pools.grant({*self._waiting.processes, *processes}, self.now)

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
        self.delay = 0.01
        self.away: set[str] = set()
        self._expiring: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._expiring = asyncio.create_task(self.owner.expire())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._expiring is not None
        self._expiring.cancel()

    def process(
        self,
        name: str,
        most: int = 100,
        functions: Sequence[str] = (FUNCTION,),
        shared: ProcessSlots | None = None,
    ) -> SlotLeases:
        async def send(request: LeaseRequest) -> LeaseAnswer:
            answering = asyncio.ensure_future(self._deliver(name, request))  # It continues if the process gives up.
            answer = await asyncio.shield(answering)
            await self._travel(name)
            return answer

        async def read_limit(function_id: str) -> int | None:
            await asyncio.sleep(2 * self.delay)
            return await self.owner.read_limit(function_id)

        leases = SlotLeases(send, read_limit, most, shared)
        for function in functions:
            leases.add(function)
        return leases

    async def _deliver(self, name: str, request: LeaseRequest) -> LeaseAnswer:
        await self._travel(name)
        return await self.owner.lease(request)

    async def _travel(self, name: str) -> None:
        if name in self.away or self.random.random() < self.disturbance / 4:
            raise ConnectionError("lost")
        is_late = self.random.random() < self.disturbance
        await asyncio.sleep(self.random.uniform(0, 70) if is_late else self.delay)

    async def call(self, name: str, leases: SlotLeases, seconds: float, function: str = FUNCTION) -> None:
        """One call, repeated until it ends with its slot."""
        while True:
            try:
                async with leases.slot(function, 60):
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
    monkeypatch.setattr(lease_time, "now", lambda: asyncio.get_running_loop().time())


@pytest.mark.parametrize(
    ("limit", "processes", "seconds"), [(4, 2, 0.5), (3, 3, 2.0), (1, 3, 0.5), (2, 2, 30.0), (4, 4, 30.0)]
)
def test_processes_under_load_keep_their_leases(limit: int, processes: int, seconds: float) -> None:
    """They always need more slots than are free, so their renewals wait for slots."""

    async def main() -> None:
        async with World(limit) as world:

            async def work(name: str, leases: SlotLeases) -> None:
                while True:
                    await world.call(name, leases, seconds)

            all_leases = {f"p{n}": world.process(f"p{n}") for n in range(processes)}
            working = [asyncio.create_task(work(*each)) for each in all_leases.items() for _ in range(limit + 1)]
            await asyncio.sleep(150)
            assert world.lost == 0
            assert world.most == limit
            assert world.ended.total() >= 0.9 * limit * (150 // seconds - 1)
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)

    run_in_virtual_time(main())


@pytest.mark.parametrize("seed", [0, 2, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(3, 60))])
def test_the_limit_is_never_passed(seed: int) -> None:
    async def main() -> None:
        limit = 1 + seed % 5
        async with World(limit, seed) as world:
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


def test_slots_of_a_dead_process_become_free() -> None:
    async def main() -> None:
        async with World(limit=2) as world:
            dead, alive = world.process("dead"), world.process("alive")
            calls = [asyncio.create_task(world.call("dead", dead, 1000)) for _ in range(2)]
            await asyncio.sleep(1)
            await _kill(world, dead, calls)
            before = asyncio.get_running_loop().time()
            await asyncio.gather(*(world.call("alive", alive, 1) for _ in range(2)))
            assert asyncio.get_running_loop().time() - before < LEASE_SECONDS + 10

    run_in_virtual_time(main())


async def _kill(world: World, leases: SlotLeases, calls: list[asyncio.Task[None]]) -> None:
    world.away.add("dead")
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await leases.close()


@pytest.mark.parametrize("error", [asyncio.CancelledError(), returned_call("the process stops")])
def test_slot_of_a_step_that_outlives_the_stop_is_free_at_the_end_of_the_lease(error: BaseException) -> None:
    """The call was cancelled, or returned because it had not ended in time."""

    async def main() -> None:
        async with World(2) as world:
            first, second = world.process("first"), world.process("second")
            cut_off: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            async def long_call() -> None:
                async with first.slot(FUNCTION, 60):
                    await cut_off

            calls = [asyncio.create_task(world.call("first", first, 5)), asyncio.create_task(long_call())]
            await asyncio.sleep(6)
            first._pools[FUNCTION].calls.close()
            cut_off.set_exception(error)
            await asyncio.gather(*calls, return_exceptions=True)
            await first.close()
            world.most = 0
            others = [asyncio.create_task(world.call("second", second, 1)) for _ in range(4)]
            await asyncio.sleep(LEASE_SECONDS - 10)
            assert world.most == 1, "the step that may go on has the other slot"
            others += [asyncio.create_task(world.call("second", second, 1)) for _ in range(4)]
            await asyncio.sleep(20)
            others += [asyncio.create_task(world.call("second", second, 1)) for _ in range(4)]
            await asyncio.gather(*others)
            assert world.most == 2
            await asyncio.sleep(15)
            assert world.owner.pools.is_empty
            await second.close()

    run_in_virtual_time(main())


def test_slot_of_a_step_that_outlives_the_stop_is_not_given_to_a_waiting_process() -> None:
    async def main() -> None:
        async with World(1) as world:
            first, second = world.process("first"), world.process("second")
            cut_off: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            async def long_call() -> None:
                async with first.slot(FUNCTION, 60):
                    await cut_off

            call = asyncio.create_task(long_call())
            await asyncio.sleep(1)
            waiting = asyncio.create_task(world.call("second", second, 1))
            await asyncio.sleep(USE_SECONDS)
            first._pools[FUNCTION].calls.close()
            cut_off.set_exception(returned_call("the process stops"))
            await asyncio.gather(call, return_exceptions=True)
            await asyncio.sleep(1)
            await first.close()
            await asyncio.sleep(LEASE_SECONDS - 10)
            assert not world.ended
            await waiting
            await second.close()

    run_in_virtual_time(main())


@pytest.mark.parametrize("stops", [False, True])
def test_a_call_that_waits_no_more_gets_no_slot(stops: bool) -> None:
    """It was cancelled, or its process stops."""

    async def main() -> None:
        async with World(1) as world:
            first, second, third = (world.process(name) for name in ("first", "second", "third"))
            call = asyncio.create_task(world.call("first", first, 10))
            await asyncio.sleep(1)
            waiting = asyncio.create_task(world.call("second", second, 10))
            await asyncio.sleep(1)
            waiting.cancel()
            if stops:
                await second.close()
            await call
            await first.close()
            before = asyncio.get_running_loop().time()
            await world.call("third", third, 1)
            assert asyncio.get_running_loop().time() - before < 2

    run_in_virtual_time(main())


def test_a_process_with_a_slow_network_keeps_its_lease() -> None:
    async def main() -> None:
        async with World(2) as world:
            world.delay = 4.0
            leases = world.process("p")
            await asyncio.gather(*(world.call("p", leases, 50) for _ in range(4)))
            assert world.lost == 0
            assert asyncio.get_running_loop().time() < 150

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
        world.owner.forget()
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


def test_calls_take_slots_again_if_a_missing_limit_was_not_read_again() -> None:
    async def main() -> None:
        async with World(limit=1) as world:
            leases = world.process("p")

            async def work() -> None:
                while True:
                    await world.call("p", leases, 0.3)

            working = [asyncio.create_task(work()) for _ in range(3)]
            await asyncio.sleep(1)
            world.owner.limit = None
            await asyncio.sleep(USE_SECONDS / 3)
            assert world.most == 3

            async def read_no_more(_: str) -> int | None:
                return await asyncio.Event().wait() and None

            leases._limits._read_limit = read_no_more
            await asyncio.sleep(USE_SECONDS / 3)
            world.most = 0
            await asyncio.sleep(USE_SECONDS / 3 - 2)
            assert world.most == 1
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)

    run_in_virtual_time(main())


def test_process_without_calls_has_no_slot() -> None:
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


OTHERS = [f"app-other-{n}" for n in range(4)]


@pytest.mark.parametrize("seconds", [0.5, 30])
@pytest.mark.parametrize(("most", "functions"), [(4, OTHERS[:1]), (4, OTHERS), (2, OTHERS)])
def test_a_function_with_a_backlog_leaves_slots_of_its_process_to_others(
    most: int, functions: list[str], seconds: float
) -> None:
    """The process may make fewer concurrent calls than its functions have slots."""

    async def main() -> None:
        async with World(limit=10) as world:
            leases = world.process("p", most, [FUNCTION, *functions])

            async def work(function: str) -> None:
                while True:
                    await world.call("p", leases, seconds, function)
                    started[function] += 1

            started: Counter[str] = Counter()
            backlog = [asyncio.create_task(work(FUNCTION)) for _ in range(most + 1)]
            await asyncio.sleep(20 * seconds)
            assert started[FUNCTION] >= 0.9 * most * 20 - most
            started.clear()
            others = [asyncio.create_task(work(function)) for function in functions]
            await asyncio.sleep(100 * seconds)
            assert world.most == most
            assert started.total() >= 0.8 * most * 100
            fair = min(1, most / (1 + len(functions))) * 100
            assert min(started[function] for function in functions) >= 0.6 * fair
            for task in [*backlog, *others]:
                task.cancel()
            await asyncio.gather(*backlog, *others, return_exceptions=True)

    run_in_virtual_time(main())


@pytest.mark.parametrize(("delay", "least_calls"), [(0.01, 20), (1.0, 5)])
def test_functions_whose_slots_other_processes_have_leave_their_share_to_others(delay: float, least_calls: int) -> None:
    async def main() -> None:
        async with World(limit=1) as world:
            world.delay = delay
            stuck, free = [f"app-stuck-{n}" for n in range(4)], [f"app-free-{n}" for n in range(2)]
            holder, leases = world.process("holder", functions=stuck), world.process("p", 2, [*stuck, *free])
            ended: Counter[str] = Counter()

            async def work(function: str) -> None:
                while True:
                    await world.call("p", leases, 1, function)
                    ended[function] += 1

            working = [asyncio.create_task(world.call("holder", holder, 1000, function)) for function in stuck]
            await asyncio.sleep(1)
            working += [asyncio.create_task(work(function)) for function in [*stuck, *free] for _ in range(2)]
            await asyncio.sleep(60)
            assert min(ended[function] for function in free) > least_calls
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)

    run_in_virtual_time(main())


def test_apps_of_a_process_share_its_slots() -> None:
    """Slots beyond the calls of the process would lie idle, and be missing in other processes."""

    async def main() -> None:
        async with World(limit=10) as first, World(limit=10) as second:
            shared = ProcessSlots(4)
            worlds = [(first, first.process("p", 4, shared=shared)), (second, second.process("p", 4, shared=shared))]

            async def work(world: World, leases: SlotLeases) -> None:
                while True:
                    await world.call("p", leases, 0.5)

            working = [asyncio.create_task(work(*worlds[0])) for _ in range(6)]
            await asyncio.sleep(10)
            assert (worlds[0][1].held, first.inside.total()) == (4, 4)
            working += [asyncio.create_task(work(*worlds[1])) for _ in range(6)]
            await asyncio.sleep(20)
            for _ in range(100):
                await asyncio.sleep(0.1)
                assert [leases.held for _, leases in worlds] == [2, 2]
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)

    run_in_virtual_time(main())


def test_many_processes_that_wait_send_few_requests() -> None:
    async def main() -> None:
        async with World(limit=2) as world:

            async def work(name: str, leases: SlotLeases) -> None:
                while True:
                    await world.call(name, leases, 0.5)

            processes = {f"p{n}": world.process(f"p{n}") for n in range(8)}
            working = [asyncio.create_task(work(*each)) for each in processes.items() for _ in range(3)]
            await asyncio.sleep(120)
            assert world.ended.total() > 0.9 * 2 * 120 / 0.5
            assert min(world.ended[name] for name in processes) > 0
            assert world.owner.updates < 8 * 120 / 2
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)

    run_in_virtual_time(main())
