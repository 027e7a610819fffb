"""The run machine under random histories: random functions, failures, lost and duplicated answers, restarts.

No I/O: a fake app answers the calls, a dictionary holds the memos, and time is a number.
"""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durably.engine.core.calls import Answer, AttemptFailed, Unreached, parallel_steps_of
from durably.engine.core.inputs import (
    Answered,
    CancelRequested,
    Checkpointed,
    DelaysSkipped,
    EndRun,
    Input,
    MakeCall,
    MakeRequest,
    Recovered,
    RequestFinished,
    TimerFired,
    WaitResolved,
    WriteMemo,
)
from durably.engine.core.machine import TRANSITIONS, advance, start
from durably.engine.core.ops import REQUESTS
from durably.engine.core.run_state import Call, Policy, RunState, RunStatus, Wait, decode_run_state, encode_run_state
from durably.protocol.engine_errors import StaleCallError
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Op, Opcode

from ...random_examples import examples
from .fake_app import FakeApp, Fetch, Invoke, Node, Parallel, Sleep, Step, WaitForEvent, leaves

POLICY = Policy(retry_delay=lambda attempt: 1000 * (attempt + 1), unreached_delay=lambda failures: 500)
MAX_ATTEMPTS = 4
LOST = ErrorData(name="CallLostError", message="lost")


class World:
    """One run, the app that it calls, and everything that may go wrong between them."""

    def __init__(self, nodes: tuple[Node, ...], chance: random.Random, *, misfortunes: int) -> None:
        self.app = FakeApp(nodes)
        self.chance = chance
        self.misfortunes = misfortunes
        self.now = 1_000_000
        self.memos: dict[str, bytes] = {}
        self.checkpointed: set[str] = set()
        self.ended: EndRun | None = None
        self.generations: set[int] = set()
        self.under_way: dict[int, Answer] = {}
        self.gone: list[tuple[int, Answer]] = []
        self.state = start(MAX_ATTEMPTS, self.now)
        self._dispatch_after_commit(None, [MakeCall(call) for call in self.state.calls])

    # the machine, and what must hold whenever it is used

    def apply(self, run_input: Input) -> None:
        before = self.state
        stored = decode_run_state(encode_run_state(before))
        assert stored == before
        self.state, commands = advance(stored, run_input, self.now, POLICY)
        assert self.state.status in TRANSITIONS[type(run_input)][3] | {before.status}, "not a transition of the table"
        self._dispatch_after_commit(before, commands)
        self._check_head()

    def _dispatch_after_commit(self, before: RunState | None, commands: list[object]) -> None:
        for command in commands:
            assert self.ended is None, "something is wanted after the run's end"
            if isinstance(command, MakeCall):
                self._check_new(command.call.generation)
            elif isinstance(command, MakeRequest):
                self._check_new(command.generation)
            elif isinstance(command, WriteMemo):
                assert command.step_id not in self.memos, f"{command.name} has a second memo"
                self.memos[command.step_id] = command.memo
            elif isinstance(command, EndRun):
                self.ended = command

    def _check_new(self, generation: int) -> None:
        assert generation > max(self.generations, default=0), "a generation is given out twice"
        self.generations.add(generation)

    def _check_head(self) -> None:
        state = self.state
        assert sum(call.is_discovery for call in state.calls) <= 1
        assert state.memos == len(self.memos)
        assert state.bytes == sum(map(len, self.memos.values()))
        ended = set(self.memos) - self.checkpointed
        targets = [call.step_id for call in state.calls] + [wait.step_id for wait in state.waits]
        assert not ended & set(targets), "a step that has ended is outstanding"
        assert len(targets) == len(set(targets)), "a step is outstanding twice"
        assert state.status.has_ended == (self.ended is not None)
        if state.status.has_ended:
            assert not state.calls
            assert not state.waits
        else:
            assert state.calls or self._live_waits(), "nothing will ever move this run"

    # what may happen

    def step(self) -> None:
        if self.misfortunes and self.chance.random() < 0.3:
            self.misfortunes -= 1
            self.chance.choice([self._restart, self._repeat, self._fail_call, self._checkpoint])()
        else:
            self._go_on()

    def _go_on(self) -> None:
        options = [self._dispatch] * bool(self._due()) + [self._answer] * bool(self.under_way)
        options += [self._end_wait] * bool(self._live_waits())
        later = [call.due for call in self.state.calls if call.due > self.now]
        if later and (not options or self.chance.random() < 0.1):
            self.now = min(later)
        else:
            self.chance.choice(options)()

    def _live_waits(self) -> list[Wait]:
        return [wait for wait in self.state.waits if not wait.needs_op]

    def _due(self) -> list[Call]:
        return [call for call in self.state.calls if call.due <= self.now and call.generation not in self.under_way]

    def _dispatch(self) -> None:
        """The app has the memos of this time, however late its answer is."""
        call = self.chance.choice(self._due())
        parallel_steps = parallel_steps_of(
            call,
            disable_immediate=self.state.disable_immediate,
            has_limits=self.chance.random() < 0.5,
            room=POLICY.max_steps - self.state.memos,
        )
        answer = self.app.run(call.step_id, dict(self.memos), self.state.disable_immediate, parallel_steps)
        self.under_way[call.generation] = answer

    def _answer(self) -> None:
        generation = self.chance.choice(list(self.under_way))
        answer = self.under_way.pop(generation)
        self.apply(Answered(generation, answer, self._memoised(generation, answer)))
        self.gone.append((generation, answer))

    def _memoised(self, generation: int, answer: Answer) -> frozenset[str]:
        call = self.state.call(generation)
        ids = {op.id for op in getattr(answer, "ops", [])} | ({call.step_id} if call else set())
        return frozenset(ids & set(self.memos))

    def _end_wait(self) -> None:
        wait = self.chance.choice(self._live_waits())
        if wait.op in REQUESTS:
            ok = RequestFinished(wait.step_id, wait.generation, b'{"data":1}')
            error = RequestFinished(wait.step_id, wait.generation, b'{"error":{}}', failed=True, is_retriable=True)
            self.apply(error if self.misfortunes and self.chance.random() < 0.3 else ok)
        elif wait.op == Opcode.SLEEP and self.chance.random() < 0.3:
            self.apply(DelaysSkipped(self.chance.choice([None, wait.step_id])))
        elif wait.op == Opcode.SLEEP or self.chance.random() < 0.3:
            self.apply(TimerFired(wait.step_id))
        else:
            self.apply(WaitResolved(wait.step_id, b'{"data":2}'))

    def _restart(self) -> None:
        self.gone += self.under_way.items()
        self.under_way.clear()
        self.apply(Recovered())

    def _repeat(self) -> None:
        """An answer or a checkpoint of a call that was given up on, or has been answered."""
        if not self.gone:
            return
        generation, answer = self.chance.choice(self.gone)
        before = self.state
        for run_input in (Answered(generation, answer), Checkpointed(generation, [])):
            with pytest.raises(StaleCallError):
                advance(self.state, run_input, self.now, POLICY)
        assert self.state == before

    def _fail_call(self) -> None:
        if self.under_way:
            generation = self.chance.choice(list(self.under_way))
            self.gone.append((generation, self.under_way.pop(generation)))
            unreached = self.chance.random() < 0.5
            self.apply(Answered(generation, Unreached(LOST) if unreached else AttemptFailed(LOST)))

    def _checkpoint(self) -> None:
        """A step is handed over ahead of the answer that reports it."""
        for generation, answer in self.under_way.items():
            ops: list[Op] = [op for op in getattr(answer, "ops", []) if op.op == Opcode.STEP_RUN]
            if ops and self.state.call(generation):
                # Of a planned step, too: its call continues, and is outstanding until it ends.
                self.checkpointed.update(op.id for op in ops)
                self.apply(Checkpointed(generation, ops, self._memoised(generation, answer)))
                return


def run_to_end(world: World, *, most: int = 5000) -> None:
    for _ in range(most):
        if world.ended is not None:
            return
        world.step()
    pytest.fail(f"the run never ends: {world.state}")


def sequences(depth: int) -> st.SearchStrategy[tuple[object, ...]]:
    leaf = st.sampled_from(["step", "step", "step", "flaky", "sleep", "event", "invoke", "fetch"])
    if depth == 0:
        return st.lists(leaf, min_size=1, max_size=3).map(tuple)
    branch = sequences(depth - 1)
    mode = st.sampled_from(["wait", "race", "first"])
    parallel = st.tuples(mode, st.lists(branch, min_size=2, max_size=3).map(tuple))
    return st.lists(leaf | parallel, min_size=1, max_size=3).map(tuple)


_LEAVES = {
    "step": Step,
    "flaky": lambda name: Step(name, failures=2),
    "doomed": lambda name: Step(name, failures=99),
    "sleep": Sleep,
    "event": WaitForEvent,
    "invoke": Invoke,
    "fetch": Fetch,
}


def build(shape: tuple[object, ...], prefix: str = "s") -> tuple[Node, ...]:
    nodes: list[Node] = []
    for index, part in enumerate(shape):
        name = f"{prefix}{index}"
        if isinstance(part, str):
            nodes.append(_LEAVES[part](name))
        else:
            mode, branches = part  # type: ignore[misc]
            built = tuple(build(branch, f"{name}.{n}.") for n, branch in enumerate(branches))
            nodes.append(Parallel(built, race=mode != "wait", first=mode == "first"))
    return tuple(nodes)


@settings(max_examples=examples(50), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shape=sequences(2), seed=st.integers(0, 2**32))
def test_every_run_ends_and_each_step_once(shape: tuple[object, ...], seed: int) -> None:
    nodes = build(shape)
    world = World(nodes, random.Random(seed), misfortunes=0)
    run_to_end(world)
    assert world.ended is not None
    assert world.ended.status == RunStatus.COMPLETED
    for leaf in leaves(nodes):
        if isinstance(leaf, Step):
            assert world.app.executions.get(leaf.id, 0) <= leaf.failures + 1


@settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shape=sequences(2), seed=st.integers(0, 2**32), misfortunes=st.integers(1, 30))
def test_run_survives_lost_and_duplicated_answers(shape: tuple[object, ...], seed: int, misfortunes: int) -> None:
    world = World(build(shape), random.Random(seed), misfortunes=misfortunes)
    run_to_end(world)
    assert world.ended is not None
    assert world.ended.status in (RunStatus.COMPLETED, RunStatus.FAILED)


@settings(max_examples=examples(25), deadline=None)
@given(shape=sequences(1), seed=st.integers(0, 2**32), after=st.integers(0, 30))
def test_cancelled_at_any_time(shape: tuple[object, ...], seed: int, after: int) -> None:
    world = World(build(shape), random.Random(seed), misfortunes=5)
    for _ in range(after):
        if world.ended is None:
            world.step()
    ended_before = world.ended is not None
    under_way = dict(world.under_way)
    world.apply(CancelRequested())
    assert world.ended is not None
    assert ended_before or world.ended.status == RunStatus.CANCELLED
    for generation, answer in under_way.items():
        with pytest.raises(StaleCallError):
            advance(world.state, Answered(generation, answer), world.now, POLICY)


def test_a_run_state_is_small() -> None:
    """Finished steps take no space in the run state."""
    world = World(tuple(Step(f"s{n}") for n in range(500)), random.Random(1), misfortunes=0)
    sizes = []
    for _ in range(400):
        world.step()
        sizes.append(len(encode_run_state(world.state)))
    assert max(sizes[50:]) <= max(sizes[:50]) + 20
