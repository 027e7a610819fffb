"""Whose call is made next, and what shares a request: any history of calls that are due and requests that end."""

from collections import Counter, defaultdict
from itertools import count
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from durably.engine.core.calls import ReportedOps
from durably.engine.core.flow.fairness import FairQueue, may_have_another
from durably.engine.core.run_state import Call
from durably.engine.sqlite.after_commit import ScheduledCall
from durably.engine.sqlite.call_queue import RUN_REQUESTS, ReadyCalls
from durably.protocol.opcodes import Op, Timing

_KINDS = st.sampled_from(["step"] * 6 + ["again", "discovery"])
_ADDED = st.tuples(st.integers(1, 4), _KINDS, st.integers(1, 60))
_OTHERS = st.tuples(st.sampled_from(["take", "end"]), st.integers(1, 60))
_MOVES = st.lists(st.one_of(_ADDED, _OTHERS), max_size=100)


class Model:
    """``functions`` is how many there are; runs belong to them in turn."""

    def __init__(self, max_requests: int = 500, functions: int = 1) -> None:
        self.max_requests = max_requests
        self.functions = functions
        self.ready = ReadyCalls(max_requests)
        self.generations = count(1)
        self.waiting: dict[int, dict[int, ScheduledCall]] = defaultdict(dict)
        self.requests: Counter[int] = Counter()
        self.under_way: list[int] = []
        self.passed_over: Counter[int] = Counter()

    def add(self, run_key: int, kind: str) -> None:
        if kind == "discovery":
            if any(due.call.is_discovery for due in self.waiting[run_key].values()):
                return
            call = Call(generation=next(self.generations), due=0)
        else:
            generation = next(self.generations)
            call = Call(generation=generation, due=0, step_id=f"s{generation}", attempt=int(kind == "again"))
        due = ScheduledCall(run_key, call, self.function_of(run_key))
        self.waiting[run_key][call.generation] = due
        self.ready.add(due, 0)

    def function_of(self, run_key: int) -> str:
        return f"f{run_key % self.functions}"

    def count(self, function_id: str) -> int:
        return sum(self.function_of(run_key) == function_id for run_key in self.under_way)

    def may_take(self, run_key: int) -> bool:
        waiting = self.waiting[run_key].values()
        has_room = self.requests[run_key] < RUN_REQUESTS
        free = self.max_requests - len(self.under_way)
        has_share = may_have_another(self.count(self.function_of(run_key)), free)
        return has_share and any(has_room or due.call.is_discovery for due in waiting)

    def take(self) -> bool:
        able = {run_key for run_key in list(self.waiting) if self.may_take(run_key)}
        taken = self.ready.take()
        assert bool(taken) == bool(able)
        if not taken:
            return False
        (run_key,) = {due.run_key for due in taken}
        waiting = self.waiting[run_key]
        is_discovery_due = any(due.call.is_discovery for due in waiting.values())
        for due in taken:
            del waiting[due.call.generation]
        assert taken[0].call.is_discovery == is_discovery_due
        if len(taken) > 1:
            assert not any(due.call.is_discovery or due.call.attempt for due in taken)
        self.requests[run_key] += 1
        self.under_way.append(run_key)
        assert self.requests[run_key] <= RUN_REQUESTS or is_discovery_due
        self._take_turns(able, run_key)
        return True

    def _take_turns(self, able: set[int], taken: int) -> None:
        del self.passed_over[taken]
        self.passed_over.update(able - {taken})
        assert all(times <= 8 for times in self.passed_over.values())

    def end(self) -> None:
        if self.under_way:
            run_key = self.under_way.pop(0)
            self.requests[run_key] -= 1
            self.ready.ended(ScheduledCall(run_key, Call(generation=0, due=0), self.function_of(run_key)))


@given(_MOVES, st.sampled_from([1, 2, 10, 500]), st.integers(1, 4))
def test_calls_are_made_once_in_turn_and_within_their_bounds(
    moves: list[Any], max_requests: int, functions: int
) -> None:
    model = Model(max_requests, functions)
    for *move, times in moves:
        for _ in range(times):
            if move == ["take"]:
                model.take()
            elif move == ["end"]:
                model.end()
            else:
                model.add(*move)
    while model.take() or model.under_way:
        model.end()
    assert not any(model.waiting.values())


def test_a_thousand_steps_share_thirty_two_requests() -> None:
    model = Model()
    for _ in range(1000):
        model.add(1, "step")
    sizes = []
    while taken := model.ready.take():
        sizes.append(len(taken))
    assert len(sizes) == RUN_REQUESTS
    assert max(sizes) == 32
    assert sum(sizes) == 1000


def test_as_many_steps_as_requests_have_one_each() -> None:
    model = Model()
    for _ in range(RUN_REQUESTS):
        model.add(1, "step")
    assert [len(model.ready.take()) for _ in range(RUN_REQUESTS)] == [1] * RUN_REQUESTS


def test_quick_steps_share_few_requests_until_one_is_slow() -> None:
    quick, slow = ReportedOps([_op(1)]), ReportedOps([_op(1_000)])
    assert len(_sizes(ReadyCalls(500))) == RUN_REQUESTS
    for answers, requests in (
        ([quick, quick], 8),
        ([quick, None], RUN_REQUESTS),  # the app had no time for all
        ([slow, quick], RUN_REQUESTS),
        ([ReportedOps([Op(id="a", op="StepRun")]), quick], RUN_REQUESTS),  # without a duration
        ([quick], RUN_REQUESTS),  # this app may execute one step at a time
    ):
        ready = ReadyCalls(500)
        ready.note_durations([_step(1)] * len(answers), answers)
        sizes = _sizes(ready)
        assert (len(sizes), sum(sizes)) == (requests, 100)
    ready = ReadyCalls(500)
    ready.note_durations([_step(1), _step(2)], [quick, quick])
    assert _sizes(ready, steps=1_000) == [125] * 8  # each request replays all steps, so their number stays the same
    ready = ReadyCalls(500)
    ready.note_durations([_step(1), _step(2)], [quick, quick])
    ready.note_durations([_step(3)], [slow])
    assert len(_sizes(ready)) == RUN_REQUESTS


def _sizes(ready: ReadyCalls, steps: int = 100) -> list[int]:
    """The sizes of the requests for the steps of a run."""
    for generation in range(steps):
        ready.add(_step(generation), 0)
    sizes = []
    while calls := ready.take():
        sizes.append(len(calls))
    return sizes


def _step(generation: int) -> ScheduledCall:
    return ScheduledCall(1, Call(generation=generation, due=0, step_id=f"s{generation}"), "f")


def _op(milliseconds: int) -> Op:
    return Op(id="a", op="StepRun", timing=Timing(0, milliseconds * 1_000_000))


def test_a_functions_single_call_is_next_behind_a_thousand_of_another() -> None:
    ready = ReadyCalls(2)
    for run_key in range(1000):
        ready.add(_call(run_key, "busy"), run_key)
    ready.add(_call(1000, "single"), 1000)
    assert sorted(ready.take()[0].function_id for _ in range(2)) == ["busy", "single"]


def test_a_function_on_its_own_leaves_a_tenth_of_the_room_to_others() -> None:
    ready = ReadyCalls(500)
    for run_key in range(1000):
        ready.add(_call(run_key, "busy"), 0)
    taken = []
    while calls := ready.take():
        taken += calls
    assert len(taken) == 450
    ready.add(_call(1000, "single"), 0)
    assert [due.function_id for due in ready.take()] == ["single"]
    assert not ready.take()
    ready.ended(taken[0])
    assert [due.function_id for due in ready.take()] == ["busy"]


def test_few_requests_are_all_for_a_function_on_its_own() -> None:
    for room in (1, 2, 9):
        ready = ReadyCalls(room)
        for run_key in range(20):
            ready.add(_call(run_key, "f"), 0)
        assert [len(ready.take()) for _ in range(room + 1)] == [1] * room + [0]


def test_higher_priority_goes_first_and_no_run_waits_for_ever() -> None:
    ready = ReadyCalls(1)
    ready.add(_call(1, "f"), 0)
    for run_key, priority, now in ((2, 0, 1000), (3, 5000, 4000), (4, 5000, 6000), (5, -2000, 1000)):
        ready.add(_call(run_key, "f", priority), now)
    order = []
    while calls := ready.take():
        order.append(calls[0].run_key)
        ready.ended(calls[0])
    assert order == [3, 1, 2, 4, 5]


def test_clock_set_back_keeps_the_order() -> None:
    ready = ReadyCalls(1)
    ready.add(_call(1, "f"), 10_000)
    ready.add(_call(2, "f"), 1000)
    assert [due.run_key for due in ready.take()] == [1]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-3, 3)), max_size=60))
def test_functions_take_turns_and_their_items_go_by_place(added: list[tuple[str, int]]) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, (function_id, place) in enumerate(added):
        queue.add(function_id, place, number)
    waiting = {function_id: [place for own, place in added if own == function_id] for function_id in "abc"}
    order = []
    while (number := queue.take(lambda function_id: True)) is not None:
        function_id, place = added[number]
        assert place == min(waiting[function_id])
        waiting[function_id].remove(place)
        order.append(function_id)
        # While both have items left, no function is ahead of another by more than one.
        counts = [order.count(own) for own in "abc" if waiting[own]]
        assert not counts or max(counts) - min(counts) <= 1
    assert not any(waiting.values())


def _call(run_key: int, function_id: str, priority: int = 0) -> ScheduledCall:
    return ScheduledCall(run_key, Call(generation=1, due=0), function_id, priority)
