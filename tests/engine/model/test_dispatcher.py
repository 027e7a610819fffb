"""Dispatch of calls: to the least busy worker, up to its capacity, and unreached if no worker serves the function."""

import asyncio
import datetime as dt
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durably.engine.core.calls import Answer, AttemptFailed, CallData, Returned, Unreached
from durably.engine.core.run_state import Call
from durably.engine.model import dispatcher as dispatcher_module
from durably.engine.model.dispatcher import CallReturnedError, Capacity, Dispatcher, RunningCalls
from durably.engine.model.functions import SyncedFunction
from durably.engine.model.settings import EngineSettings
from durably.protocol.engine_errors import WorkerLostError
from durably.protocol.sync import FunctionConfig, Retries, Runtime, StepConfig

from ...embedded.cluster import eventually

DONE = Returned(b"1")


class FakeWorker:
    """Answers when the test releases it."""

    def __init__(self) -> None:
        self.calls: list[asyncio.Future[Answer]] = []
        self.most = 0

    @property
    def under_way(self) -> int:
        return sum(not call.done() for call in self.calls)

    async def run(self, app_id: str, data: CallData) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.calls.append(future)
        self.most = max(self.most, self.under_way)
        return await future

    def finish_one(self) -> None:
        next(call for call in self.calls if not call.done()).set_result(DONE)


def call(dispatcher: Dispatcher, function_id: str = "f", *, priority: int = 0) -> asyncio.Task[Answer]:
    step = StepConfig(id="step", runtime=Runtime(url="embedded://app"), retries=Retries(attempts=0))
    function = SyncedFunction.from_config(FunctionConfig(id=function_id, triggers=[], steps={"step": step}), "app")
    data = CallData("run", function_id, Call(generation=1, due=0), 1, False, [b"{}"], [], priority=priority)
    return asyncio.get_running_loop().create_task(dispatcher.call(function, data))


def capacity(max_calls: int, *function_ids: str) -> Capacity:
    return Capacity(1, frozenset(function_ids or ("f",)), max_calls)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(EngineSettings())


async def test_the_least_busy_worker_of_a_function_gets_the_call(dispatcher: Dispatcher) -> None:
    small, large, other = FakeWorker(), FakeWorker(), FakeWorker()
    dispatcher.add(small, capacity(2))
    dispatcher.add(large, capacity(6))
    dispatcher.add(other, capacity(9, "g"))
    calls = [call(dispatcher) for _ in range(4)]
    await settle()
    assert (small.under_way, large.under_way, other.under_way) == (1, 3, 0)
    for worker in (small, large):
        while worker.under_way:
            worker.finish_one()
    assert await asyncio.gather(*calls) == [Returned(b"1")] * 4


async def test_many_calls_of_a_function_leave_capacity_for_others(dispatcher: Dispatcher) -> None:
    worker = FakeWorker()
    dispatcher.add(worker, capacity(10, "busy", "single", "more"))
    busy = [call(dispatcher, "busy") for _ in range(50)]
    await settle()
    assert worker.under_way == 9
    single = call(dispatcher, "single")
    await settle()
    assert worker.under_way == 10
    worker.calls[9].set_result(DONE)
    assert await single == Returned(b"1")
    for task in busy:
        task.cancel()


async def test_waiting_calls_are_ordered_by_priority(dispatcher: Dispatcher) -> None:
    worker = FakeWorker()
    dispatcher.add(worker, capacity(1))
    order: list[int] = []

    async def record(priority: int) -> None:
        await call(dispatcher, priority=priority)
        order.append(priority)

    async with asyncio.TaskGroup() as tasks:
        for priority in (0, -60_000, 0, 60_000):
            tasks.create_task(record(priority))
            await settle()
        for _ in range(4):
            worker.finish_one()
            await settle()
    assert order == [0, 60_000, 0, -60_000]


async def test_a_function_that_no_worker_serves_is_unreached(dispatcher: Dispatcher) -> None:
    dispatcher.add(FakeWorker(), capacity(0))
    assert isinstance(await call(dispatcher), Unreached)


async def test_waiting_calls_end_when_the_last_worker_of_a_function_leaves(dispatcher: Dispatcher) -> None:
    worker = FakeWorker()
    slots = dispatcher.add(worker, capacity(1))
    calls = [call(dispatcher) for _ in range(2)]
    await settle()
    dispatcher.remove(slots)
    assert isinstance(await calls[1], Unreached)
    worker.calls[0].set_exception(WorkerLostError("gone"))
    assert isinstance(await calls[0], AttemptFailed)


async def test_a_returned_call_uses_up_no_attempt(dispatcher: Dispatcher) -> None:
    worker = FakeWorker()
    dispatcher.add(worker, capacity(1))
    returned = call(dispatcher)
    await settle()
    worker.calls[0].set_exception(CallReturnedError("stops"))
    assert isinstance(await returned, Unreached)


@settings(max_examples=60, deadline=None)
@given(
    room=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    happenings=st.lists(st.sampled_from(["call", "finish", "cancel", "lose"]), max_size=40),
)
def test_any_history_fills_the_room_and_no_more(room: list[int], happenings: list[str]) -> None:
    async def play() -> None:
        dispatcher = Dispatcher(EngineSettings())
        workers = [FakeWorker() for _ in room]
        for worker, max_calls in zip(workers, room, strict=True):
            dispatcher.add(worker, capacity(max_calls))
        calls: list[asyncio.Task[Answer]] = []
        for happening in happenings:
            open_calls = [each for each in calls if not each.done()]
            busy = [worker for worker in workers if worker.under_way]
            if happening == "call":
                calls.append(call(dispatcher))
            elif happening == "cancel" and open_calls:
                open_calls[len(open_calls) // 2].cancel()
            elif happening == "finish" and busy:
                busy[0].finish_one()
            elif happening == "lose" and busy:
                next(each for each in busy[-1].calls if not each.done()).set_exception(WorkerLostError("gone"))
            await settle()
            under_way = [worker.under_way for worker in workers]
            still_open = sum(not each.done() for each in calls)
            assert all(each <= most for each, most in zip(under_way, room, strict=True))
            assert sum(under_way) == min(still_open, sum(room))
        for each in calls:
            each.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(play())


@pytest.fixture
def impatient() -> Dispatcher:
    return Dispatcher(EngineSettings(call_timeout=dt.timedelta(seconds=0.05)))


async def test_calls_that_time_out_fail_and_free_their_slots(impatient: Dispatcher) -> None:
    worker = FakeWorker()
    impatient.add(worker, capacity(2))
    late, quick, next_ = (call(impatient) for _ in range(3))
    await settle()
    worker.calls[1].set_result(DONE)
    await settle()
    worker.calls[2].set_result(DONE)
    assert await asyncio.gather(quick, next_) == [Returned(b"1")] * 2
    for each in (late, call(impatient), call(impatient)):
        ended = await each
        assert isinstance(ended, AttemptFailed)
        assert ended.error.name == "CallTimeoutError"
        assert each.cancelling() == 0
    assert [each.cancelled() for each in worker.calls] == [True, False, False, True, True]


async def test_a_process_that_joins_soon_causes_no_warning(
    dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "UNSERVED_SECONDS", 0.02)
    worker = FakeWorker()
    dispatcher.add(worker, capacity(1, "g"))
    await call(dispatcher)
    dispatcher.add(FakeWorker(), capacity(1, "f"))
    await call(dispatcher, "missing")
    await asyncio.to_thread(eventually, lambda: caplog.records, "a warning is logged")
    assert ["'missing'" in record.getMessage() for record in caplog.records] == [True]


def test_unreadable_records_of_running_calls_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls = RunningCalls(tmp_path)
    for key in ("harmed", "kept"):
        calls.begin(key)
    calls.close()
    path = tmp_path / "calls"
    path.write_bytes(path.read_bytes().replace(b"harmed", b"\xffarmed"))
    calls = RunningCalls(tmp_path)
    assert [calls.take_lost(key) for key in ("harmed", "kept")] == [False, True]
    calls.close()
    path.unlink()
    path.symlink_to(path)  # so that no user can read it
    assert not caplog.records
    RunningCalls(tmp_path).close()
    [warning] = caplog.records
    assert str(path) in warning.getMessage()
