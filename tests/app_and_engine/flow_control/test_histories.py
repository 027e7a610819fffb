"""Random histories of functions with flow control, and of what people do to them (cancelling, pausing, running again,
sending signals), in the database and through the run machine, but without a loop.

After each step: no limit is exceeded, room is taken by calls under way and by nothing else, and every run has
something that will move it. In the end, after whatever happened, all runs end and nothing is left behind.
"""

import sqlite3
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from durably.engine.core.calls import Answer, AttemptFailed, ReportedOps, Returned
from durably.engine.core.run_state import Policy, RunStatus, decode_run_state
from durably.engine.model.events import check_event
from durably.engine.model.functions import Registry, SyncedFunction
from durably.engine.model.runs import RunFilter, to_datetime
from durably.engine.sqlite.after_commit import AfterCommitAction, ContinueBulkOperation, ControlsChanged, ScheduledCall
from durably.engine.sqlite.schema import MIGRATIONS
from durably.engine.sqlite.tables.flow import FlowStore
from durably.engine.sqlite.tables.runs import RunStore
from durably.engine.sqlite.timers import load_timers
from durably.engine.sqlite.transactions import bulk_operations, event_routing, operations, runs
from durably.engine.sqlite.transactions.transaction import RunCache, Transaction, TransactionContext
from durably.engine.sqlite.transactions.triggers import FromStep
from durably.protocol.call import CheckpointRequest
from durably.protocol.errors import ErrorData
from durably.protocol.events import Event
from durably.protocol.opcodes import Op, Opcode, hash_step_id
from durably.protocol.sync import FunctionConfig

from ...random_examples import examples

_START = 1_700_000_000_000
_LIMIT = 2
_OPTIONS: list[dict[str, Any]] = [
    {},
    {"concurrency": [{"limit": _LIMIT}]},
    {"concurrency": [{"limit": _LIMIT}, {"limit": 1, "key": "event.data.user"}], "timeouts": {"start": "30s"}},
    {"throttle": {"limit": 2, "period": "10s"}, "priority": {"run": "event.data.n * 10"}},
    {"concurrency": [{"limit": _LIMIT}], "throttle": {"limit": 3, "period": "10s"}, "timeouts": {"finish": "40s"}},
    {"singleton": {"mode": "cancel", "key": "event.data.user"}, "concurrency": [{"limit": _LIMIT}]},
    {"singleton": {"mode": "skip"}, "cancel": [{"event": "go", "if": "async.data.user == event.data.user"}]},
    {"debounce": {"period": "5s", "key": "event.data.user"}, "concurrency": [{"limit": 1}]},
    {"batchEvents": {"maxSize": 3, "timeout": "5s"}, "concurrency": [{"limit": _LIMIT}]},
    {"idempotency": "event.data.n", "rateLimit": {"limit": 2, "period": "5s", "key": "event.data.user"}},
    {
        "idempotency": "event.data.n > 0 ? event.data.n : false",
        "rateLimit": {"limit": 20, "period": "5s"},
        "debounce": {"period": "2s", "timeout": "6s", "key": "event.data.user"},
        "singleton": {"mode": "cancel"},
        "throttle": {"limit": 2, "period": "10s", "burst": 2},
        "concurrency": [{"limit": _LIMIT}, {"limit": 1, "key": "event.data.user", "scope": "account"}],
        "priority": {"run": "event.data.n * 100"},
        "cancel": [{"event": "go", "if": "async.data.n > event.data.n", "timeout": "20s"}],
        "timeouts": {"start": "30s", "finish": "40s"},
    },
]
_KINDS = ("plan", "sleep", "run", "signal", "signal instead", "signal instead")
_LEFT_BEHIND = (
    "run_states",
    "waits",
    "delayed_calls",
    "concurrency_keys",
    "queued_calls",
    "slots_used",
    "slots",
    "throttle_times",
    "cancel_events",
    "deadlines",
    "pending_events",
)


def _function(options: dict[str, Any]) -> SyncedFunction:
    config = {
        "id": "app-fn",
        "triggers": [{"event": "go"}],
        "steps": {"step": {"id": "step", "runtime": {"url": "http://127.0.0.1:1/"}, "retries": {"attempts": 1}}},
    }
    return SyncedFunction.from_config(msgspec.convert(config | options, FunctionConfig), "app")


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        for script in MIGRATIONS:
            self.db.executescript(script)
        self.now = _START
        self.under_way: dict[tuple[int, int], ScheduledCall] = {}
        self.steps = 0
        self.runs_when_paused: int | None = None
        self.entropy = 0
        policy = Policy(retry_delay=lambda attempt: 3_000, unreached_delay=lambda failures: 500)
        self.cache = RunCache()
        self.context = TransactionContext(
            RunStore(self.db), FlowStore(self.db), policy, 10_000, self._random, self.cache, runs.cancel
        )

    def teardown(self) -> None:
        try:
            self._end()
        finally:
            self.db.close()

    @initialize(options=st.sampled_from(_OPTIONS))
    def begin(self, options: dict[str, Any]) -> None:
        self.options = self.synced = options
        self.was_synced = False
        self.registry = Registry([_function(options)], {})

    def _random(self, size: int) -> bytes:
        self.entropy += 1
        return self.entropy.to_bytes(size, "big")

    def _do(self, work: Callable[..., object], *args: object) -> None:
        self.db.execute("BEGIN")
        transaction = Transaction(self.context, self.registry, self.now)
        work(transaction, *args)
        actions = runs.finish(transaction)
        self.db.execute("COMMIT")
        for message in actions:
            self._dispatch_after_commit(message)

    def _dispatch_after_commit(self, message: AfterCommitAction) -> None:
        match message:
            case ScheduledCall():
                self._make([message])
            case ControlsChanged(function_id, controls):
                self.registry = self.registry.with_controls(function_id, controls)
            case ContinueBulkOperation(operation_id):
                self._do(bulk_operations.continue_operation, operation_id)

    def _make(self, calls: list[ScheduledCall]) -> None:
        for due in calls:
            if not due.call.is_made(self.now):
                continue
            if due.has_to_queue:
                self._do(runs.join_queue, due.run_key, due.call.generation)
            elif self._head_call(due) is not None:
                self.under_way[due.run_key, due.call.generation] = due

    def _head_call(self, due: ScheduledCall) -> object:
        row = self.db.execute("SELECT state FROM run_states WHERE run_key = ?", (due.run_key,)).fetchone()
        return decode_run_state(row[0]).call(due.call.generation) if row else None

    def _fall_due(self) -> None:
        """All that is due, read from the database: also what has been met before."""
        for _, item in load_timers(self.db, -1, self.now, 1000).items:
            if isinstance(item, ScheduledCall):
                self._make([item])
            else:
                self._do(operations.fire_timer, item)

    def _answer(self, due: ScheduledCall, answer: Answer) -> None:
        del self.under_way[due.run_key, due.call.generation]
        if self._head_call(due) is not None:
            self._do(operations.answer, [(due, answer)], self.now)

    def _some_call(self, index: int) -> ScheduledCall:
        return list(self.under_way.values())[index % len(self.under_way)]

    # what may happen

    @rule(users=st.text("ab", min_size=1, max_size=4), n=st.integers(0, 5))
    def send(self, users: str, n: int) -> None:
        events = [check_event(Event(name="go", data={"user": user, "n": n}, ts=self.now), 10_000) for user in users]
        self._do(lambda transaction: event_routing.send(transaction, events, None))

    @precondition(lambda self: self.under_way)
    @rule(index=st.integers(0, 50))
    def return_(self, index: int) -> None:
        self._answer(self._some_call(index), Returned(b"1"))

    @precondition(lambda self: self.under_way)
    @rule(index=st.integers(0, 50))
    def fail(self, index: int) -> None:
        self._answer(self._some_call(index), AttemptFailed(ErrorData(name="E", message="e")))

    @precondition(lambda self: self.under_way)
    @rule(index=st.integers(0, 50), kinds=st.lists(st.sampled_from(_KINDS), min_size=1, max_size=3))
    def options(self, index: int, kinds: list[str]) -> None:
        due = self._some_call(index)
        if not due.call.is_discovery:
            ops = [Op(id=due.call.step_id, op=Opcode.STEP_RUN, name=due.call.name, data=msgspec.Raw(b"1"))]
        else:
            ops = [self._op(kind) for kind in (kinds if len(kinds) == 1 else [kind for kind in kinds if kind != "run"])]
        if ops:
            self._answer(due, ReportedOps(ops=ops))

    @precondition(lambda self: self.under_way)
    @rule(index=st.integers(0, 50), steps=st.integers(1, 3))
    def checkpoint(self, index: int, steps: int) -> None:
        due = self._some_call(index)
        if due.call.is_discovery and self._head_call(due) is not None:
            (run_id,) = self.db.execute("SELECT id FROM runs WHERE key = ?", (due.run_key,)).fetchone()
            done = [self._op("run") for _ in range(steps)]
            request = CheckpointRequest(generation_id=due.call.generation, steps=done)
            self._do(operations.checkpoint, run_id, request)

    def _op(self, kind: str) -> Op:
        self.steps += 1
        name = f"s{self.steps}"
        match kind:
            case "plan":
                return Op(id=hash_step_id(name), op=Opcode.STEP_PLANNED, name=name)
            case "signal" | "signal instead":
                conflict = "fail" if kind == "signal" else "replace"
                opts = {"signal": "bell", "conflict": conflict, "timeout": "6s"}
                return Op(id=hash_step_id(name), op=Opcode.WAIT_FOR_SIGNAL, name=name, opts=opts)
            case "sleep":
                return Op(id=hash_step_id(name), op=Opcode.SLEEP, name=name, opts={"duration": "4s"})
            case _:
                return Op(id=hash_step_id(name), op=Opcode.STEP_RUN, name=name, data=msgspec.Raw(b"1"))

    @rule(index=st.integers(0, 50))
    def cancel(self, index: int) -> None:
        runs = self.db.execute("SELECT id FROM runs JOIN run_states ON run_key = key ORDER BY key").fetchall()
        if runs:
            self._do(lambda transaction: operations.cancel(transaction, runs[index % len(runs)][0]))

    @rule()
    def ring(self) -> None:
        self._do(lambda transaction: operations.signal(transaction, "bell", b"1"))

    @rule(user=st.sampled_from("ab"))
    def cancel_in_bulk(self, user: str) -> None:
        mine = RunFilter(
            function_id="app-fn", started_before=to_datetime(self.now), if_exp=f"event.data.user == '{user}'"
        )
        self._do(lambda transaction: bulk_operations.cancel_runs(transaction, mine))
        live = self.db.execute(
            "SELECT events.body FROM run_states JOIN runs ON runs.key = run_key JOIN events ON events.key = event_key "
            "WHERE created_at < ?",
            (self.now,),
        )
        assert all(msgspec.json.decode(body)["data"]["user"] != user for (body,) in live.fetchall())

    @rule(seconds=st.sampled_from([2, 10]))
    def cancel_what_comes(self, seconds: int) -> None:
        coming = RunFilter(function_id="app-fn", started_before=to_datetime(self.now + seconds * 1000))
        self._do(lambda transaction: bulk_operations.cancel_runs(transaction, coming))
        assert not self.db.execute("SELECT 1 FROM run_states").fetchone(), "those that are there are cancelled first"

    @precondition(lambda self: self.runs_when_paused is None)
    @rule(statuses=st.sets(st.sampled_from([RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.SKIPPED]), min_size=1))
    def replay(self, statuses: set[RunStatus]) -> None:
        before = RunFilter(function_id="app-fn", started_before=to_datetime(self.now))
        self._do(lambda transaction: bulk_operations.replay_runs(transaction, before, statuses))
        assert not self.db.execute("SELECT 1 FROM bulk_operations WHERE ended_at IS NULL").fetchone()

    @precondition(lambda self: self.runs_when_paused is None)
    @rule(index=st.integers(0, 50))
    def rerun_from_a_step(self, index: int) -> None:
        """The new run has the memos that were made before the step's."""
        steps = self.db.execute("SELECT id, name, seq FROM memos JOIN runs ON key = run_key ORDER BY 1, 3").fetchall()
        if not steps:
            return
        run_id, name, seq = steps[index % len(steps)]
        (known,) = self.db.execute("SELECT max(key) FROM runs").fetchone()
        self._do(lambda transaction: operations.rerun(transaction, run_id, FromStep(name)))
        for key, status in self.db.execute("SELECT key, status FROM runs WHERE key > ?", (known,)).fetchall():
            (memos,) = self.db.execute("SELECT count(*) FROM memos WHERE run_key = ?", (key,)).fetchone()
            assert status == RunStatus.SKIPPED or memos == seq - 1

    @precondition(lambda self: self.runs_when_paused is None)
    @rule()
    def pause(self) -> None:
        self._do(lambda transaction: bulk_operations.pause(transaction, "app-fn"))
        self.runs_when_paused = self._count_runs()

    @precondition(lambda self: self.runs_when_paused is not None)
    @rule()
    def resume(self) -> None:
        self.runs_when_paused = None
        self._do(lambda transaction: bulk_operations.resume(transaction, "app-fn"))

    def _count_runs(self) -> int:
        (runs,) = self.db.execute("SELECT count(*) FROM runs WHERE status != ?", (RunStatus.SKIPPED,)).fetchone()
        return int(runs)

    @rule(seconds=st.sampled_from([0.1, 1, 5, 20]))
    def let_pass(self, seconds: float) -> None:
        self.now += round(seconds * 1000)
        self._fall_due()

    @rule()
    def restart(self) -> None:
        self.cache.clear()
        self.registry = Registry([_function(self.synced)], bulk_operations.read_controls(self.db, self.now))
        self.under_way.clear()
        self._do(lambda transaction: operations.recover(transaction, self.context.store.runnable_runs()))
        self._fall_due()

    @rule(options=st.sampled_from(_OPTIONS))
    def sync(self, options: dict[str, Any]) -> None:
        """Room that is taken is not taken away, so a limit that has become less holds for what comes after."""
        self.was_synced = True
        self.synced = options
        self.registry = self.registry.with_app("app", [_function(options)])
        self._do(lambda transaction: transaction.queue.update_limits(self.registry.functions["app-fn"].flow))

    # what always holds

    @invariant()
    def room_is_taken_by_calls_under_way_alone(self) -> None:
        holding_slots = dict(self.db.execute("SELECT run_key || '/' || generation, bucket_ids FROM slots").fetchall())
        live = {key for key, due in self.under_way.items() if self._head_call(due) is not None}
        assert set(holding_slots) <= {f"{run_key}/{generation}" for run_key, generation in live}
        taken = Counter(bucket for encoded in holding_slots.values() for bucket in msgspec.msgpack.decode(encoded))
        assert dict(self.db.execute("SELECT id, used FROM slots_used").fetchall()) == dict(taken)

    @invariant()
    def what_is_remembered_is_what_is_stored(self) -> None:
        store = self.context.store
        for (run_key,) in self.db.execute("SELECT key FROM runs").fetchall():
            cached = self.cache.runs.get(run_key)
            stored = store.state(run_key)
            assert cached is None or stored is not None, "a run that has ended is forgotten"
            if cached is not None:
                assert (cached.state, cached.queue_entry, cached.is_runnable) == stored
                assert cached.row == store.run(run_key)
                assert self.cache.keys[cached.row.id] == run_key

    @invariant()
    def nothing_starts_while_it_is_paused(self) -> None:
        assert self.runs_when_paused in (None, self._count_runs())

    @invariant()
    def one_step_at_most_waits_for_a_signal(self) -> None:
        waiting = "SELECT count(*) FROM waits WHERE op = ? AND topic = 'bell'"
        assert self.db.execute(waiting, (Opcode.WAIT_FOR_SIGNAL,)).fetchone() <= (1,)

    @invariant()
    def no_limit_is_exceeded(self) -> None:
        limits = [one["limit"] for one in self.options.get("concurrency", ()) if "key" not in one]
        if limits and not self.was_synced:
            assert sum(self._head_call(due) is not None for due in self.under_way.values()) <= limits[0]

    @invariant()
    def every_run_has_something_that_moves_it(self) -> None:
        for run_key, encoded, is_runnable in self.db.execute(
            "SELECT run_key, state, is_runnable FROM run_states"
        ).fetchall():
            state = decode_run_state(encoded)
            assert state.calls or state.waits
            queued = self._generations("queued_calls", run_key)
            delayed = self._generations("delayed_calls", run_key)
            for call in state.calls:
                is_made = (run_key, call.generation) in self.under_way
                is_waiting = call.generation in queued or (call.generation in delayed and call.due > self.now)
                assert is_made != is_waiting
                assert is_runnable or not is_made

    def _generations(self, table: str, run_key: int) -> set[int]:
        rows = self.db.execute(f"SELECT generation FROM {table} WHERE run_key = ?", (run_key,))
        return {generation for (generation,) in rows}

    @invariant()
    def nothing_waits_where_there_is_room(self) -> None:
        """And no concurrency key is looked at that need not be: each waits at a limit that is closed."""
        rows = self.db.execute(
            "SELECT limit_id, limit_maximum, coalesce(used, 0) FROM concurrency_keys LEFT JOIN slots_used ON "
            "slots_used.id = limit_id "
            "WHERE limit_maximum > 0"
        )
        for limit, limit, used in rows:
            assert used >= limit, limit

    def _end(self) -> None:
        """Let everything end, and check what is left."""
        for _ in range(400):
            while self.under_way:
                self._answer(self._some_call(0), self._ending(self._some_call(0)))
            if not self.db.execute("SELECT 1 FROM run_states").fetchone() and not self._has_pending():
                break
            self.now += 5_000
            self._fall_due()
        for table in _LEFT_BEHIND:
            assert self.db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
        assert self.db.execute("SELECT count(*) FROM buckets WHERE expires IS NULL").fetchone() == (0,)

    def _has_pending(self) -> bool:
        return any(
            self.db.execute(f"SELECT 1 FROM {table}").fetchone() for table in ("pending_events", "throttle_times")
        )

    def _ending(self, due: ScheduledCall) -> Answer:
        if due.call.is_discovery:
            return Returned(b"1")
        return ReportedOps(ops=[Op(id=due.call.step_id, op=Opcode.STEP_RUN, name="s", data=msgspec.Raw(b"1"))])


Histories.TestCase.settings = settings(max_examples=examples(100), stateful_step_count=60, deadline=None)
TestHistories = Histories.TestCase
