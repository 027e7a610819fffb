"""Whose call is made next, and what shares a request: any history of calls that are due and requests that end."""

from collections import Counter, defaultdict
from itertools import count
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from durably.engine.embedded.effects import CallAt
from durably.engine.embedded.ready import RUN_REQUESTS, ReadyCalls
from durably.engine.head import Call

_KINDS = st.sampled_from(["step"] * 6 + ["again", "discovery"])
_ADDED = st.tuples(st.integers(1, 4), _KINDS, st.integers(1, 60))
_OTHERS = st.tuples(st.sampled_from(["take", "end"]), st.integers(1, 60))
_MOVES = st.lists(st.one_of(_ADDED, _OTHERS), max_size=100)


class Model:
    def __init__(self) -> None:
        self.ready = ReadyCalls()
        self.generations = count(1)
        self.waiting: dict[int, dict[int, CallAt]] = defaultdict(dict)
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
        due = CallAt(run_key, call)
        self.waiting[run_key][call.generation] = due
        self.ready.add(due)

    def may_take(self, run_key: int) -> bool:
        waiting = self.waiting[run_key].values()
        has_room = self.requests[run_key] < RUN_REQUESTS
        return any(has_room or due.call.is_discovery for due in waiting)

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
            self.ready.ended(run_key)


@given(_MOVES)
def test_calls_are_made_once_in_turn_and_within_their_bounds(moves: list[Any]) -> None:
    model = Model()
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
