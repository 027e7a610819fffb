"""Transitions of a run, one answer, op or event at a time. Histories are in test_machine_histories."""

import msgspec
import pytest

from durably.engine.core.calls import Answer, AttemptFailed, ReportedOps, Returned, Unreached
from durably.engine.core.inputs import (
    AbortDeferred,
    Answered,
    AwaitSignal,
    CancelRequested,
    Checkpointed,
    CloseWait,
    Command,
    Defer,
    DelaysSkipped,
    EndRun,
    Input,
    MakeCall,
    MakeRequest,
    Recovered,
    RefuseDeferred,
    RequestFinished,
    SignalConflicted,
    Sleep,
    TimerFired,
    WaitResolved,
    WriteMemo,
)
from durably.engine.core.machine import advance, start
from durably.engine.core.run_state import MACHINE_VERSION, Call, Deferred, Policy, RunState, RunStatus
from durably.protocol.engine_errors import StaleCallError, TooLargeError
from durably.protocol.errors import ErrorData
from durably.protocol.limits import MAX_DEFERRED, MAX_DEFERRED_BYTES, MAX_STEP_OUTPUT_BYTES
from durably.protocol.opcodes import Op, Opcode, Userland

POLICY = Policy(retry_delay=lambda attempt: 1000 * (attempt + 1), unreached_delay=lambda failures: 10 * (failures + 1))
NOW = 1_700_000_000_000
BOOM = ErrorData(name="Boom", message="broken")


class Run:
    def __init__(self, max_attempts: int = 3) -> None:
        self.now = NOW
        self.policy = POLICY
        self.state, self.commands = start(max_attempts, NOW), list[Command]()

    def feed(self, run_input: Input) -> list[Command]:
        self.state, self.commands = advance(self.state, run_input, self.now, self.policy)
        return self.commands

    def answer(self, answer: Answer, *, memoised: tuple[str, ...] = (), step: str | None = None) -> list[Command]:
        """Answer the call for ``step``, or the discovery."""
        call = next(c for c in self.state.calls if (c.is_discovery if step is None else c.step_id == step))
        return self.feed(Answered(call.generation, answer, frozenset(memoised)))

    def ops(self, *ops: Op, memoised: tuple[str, ...] = (), step: str | None = None) -> list[Command]:
        return self.answer(ReportedOps(list(ops)), memoised=memoised, step=step)

    @property
    def discoveries(self) -> list[Call]:
        return [call for call in self.state.calls if call.is_discovery]

    @property
    def end(self) -> EndRun:
        return next(command for command in self.commands if isinstance(command, EndRun))

    @property
    def error(self) -> dict[str, str]:
        decoded: dict[str, str] = msgspec.json.decode(self.end.output)
        return decoded


def op(
    kind: Opcode, step: str = "a", *, race: bool = False, opts: dict[str, object] | None = None, **more: object
) -> Op:
    opts = {**(opts or {}), "parallelMode": "race"} if race else opts
    return Op(id=step, op=kind, opts=opts, userland=Userland(id=f"step {step}"), **more)  # type: ignore[arg-type]


def ran(step: str = "a", data: bytes = b"1", **more: object) -> Op:
    return op(Opcode.STEP_RUN, step, data=msgspec.Raw(data), **more)  # type: ignore[arg-type]


def raised(step: str = "a") -> Op:
    return op(Opcode.STEP_ERROR, step, error=BOOM)


def planned(step: str, *, race: bool = False) -> Op:
    return op(Opcode.STEP_PLANNED, step, race=race)


def kinds(commands: list[Command]) -> list[type]:
    return [type(command) for command in commands]


# calls and their answers


def test_a_run_starts_with_a_discovery() -> None:
    run = Run()
    assert run.state == RunState(
        version=MACHINE_VERSION,
        status=RunStatus.SCHEDULED,
        max_attempts=3,
        generation=1,
        calls=(Call(generation=1, due=NOW),),
    )
    copied = start(3, NOW, memos=2, size=50)
    assert (copied.memos, copied.bytes, copied.calls[0].memos_seen) == (2, 50, 2)


def test_a_call_that_never_reached_the_app_uses_up_no_attempt() -> None:
    run = Run(max_attempts=1)
    for failures in range(50):
        run.answer(Unreached(ErrorData(name="AppUnreachableError", message="refused")))
        (call,) = run.state.calls
        assert (call.attempt, call.unreached) == (0, failures + 1)
        assert call.due == NOW + 10 * (failures + 1)
    run.answer(Returned(b"1"))
    assert run.end.status == RunStatus.COMPLETED


def test_an_answer_under_an_old_generation_is_refused() -> None:
    run = Run()
    run.answer(AttemptFailed(BOOM))
    before = run.state
    for late in (Answered(1, Returned(b"1")), Checkpointed(1, [ran()])):
        with pytest.raises(StaleCallError, match="generation 1"):
            run.feed(late)
    assert run.state == before


def test_inputs_after_the_end() -> None:
    run = Run()
    run.ops(op(Opcode.SLEEP, opts={"duration": "1s"}))
    run.feed(CancelRequested())
    assert run.end.status == RunStatus.CANCELLED
    before = run.state
    with pytest.raises(StaleCallError, match="cancelled"):
        run.feed(Answered(1, Returned(b"1")))
    for late in (TimerFired("a"), WaitResolved("a", b"1"), CancelRequested(), Recovered(), SignalConflicted("a", "s")):
        assert run.feed(late) == []
    assert run.state == before


def test_delays_are_skipped_of_one_step_or_of_all() -> None:
    run = Run(max_attempts=3)
    run.ops(op(Opcode.SLEEP, "s", opts={"duration": "1d"}), op(Opcode.STEP_PLANNED, "a"), op(Opcode.STEP_PLANNED, "b"))
    a, b = run.state.calls
    for call in (a, b):
        run.feed(Answered(call.generation, ReportedOps([op(Opcode.STEP_ERROR, call.step_id)])))
    delayed_a, delayed_b = run.state.calls
    assert run.feed(DelaysSkipped("unknown")) == []
    (command,) = run.feed(DelaysSkipped("a"))
    assert isinstance(command, MakeCall)
    assert (command.call.due, command.call.attempt, command.failed) == (run.now, 1, None)
    assert command.call.generation > delayed_b.generation
    with pytest.raises(StaleCallError):
        run.feed(Answered(delayed_a.generation, Returned(b"1")))
    assert kinds(run.feed(DelaysSkipped())) == [MakeCall, CloseWait, WriteMemo]
    assert not run.state.waits
    assert run.feed(DelaysSkipped()) == [], "a call that is made is not delayed"


def test_an_answer_without_ops_is_a_failed_attempt() -> None:
    run = Run(max_attempts=3)
    for _ in range(3):
        run.ops()
    assert run.error["name"] == "NothingAskedError"


# executed steps


def test_executed_step_is_memoised_and_discovery_continues_at_a_first_attempt() -> None:
    run = Run()
    run.answer(AttemptFailed(BOOM))
    commands = run.ops(ran(data=b'{"x":1}'))
    assert commands[0] == WriteMemo("a", "step a", Opcode.STEP_RUN, b'{"data":{"x":1}}', attempts=2)
    assert commands[1:] == [MakeCall(Call(generation=3, due=NOW, memos_seen=1))]


def test_an_error_after_an_executed_step_in_the_same_answer_is_a_first_attempt() -> None:
    run = Run(max_attempts=2)
    run.answer(AttemptFailed(BOOM))
    commands = run.ops(ran("a"), raised("b"))
    assert kinds(commands) == [WriteMemo, MakeCall]
    assert [(call.attempt, call.due) for call in run.state.calls] == [(1, NOW + 1000)]


def test_the_step_limit_is_the_policys() -> None:
    run = Run()
    run.policy = msgspec.structs.replace(POLICY, max_steps=2)
    run.ops(ran("a"))
    run.ops(ran("b"))
    run.ops(ran("c"))
    assert run.error["name"] == "StepLimitError"
    assert "at most 2 steps" in run.error["message"]
    assert "max_steps" in run.error["message"]


def test_a_fan_out_over_the_step_limit_starts_no_step() -> None:
    run = Run()
    run.policy = msgspec.structs.replace(POLICY, max_steps=5)
    run.ops(ran("a"))
    opts = {"function_id": "app-child", "payload": {"data": {}}}
    run.ops(*(op(Opcode.INVOKE_FUNCTION, f"s{number}", opts=opts) for number in range(5)))
    assert kinds(run.commands) == [EndRun]
    assert run.error["name"] == "StepLimitError"
    assert "it has 1 and requests 5 more" in run.error["message"]


@pytest.mark.parametrize("bad", ["Sleep", "NoSuchOp"])
def test_an_answer_with_an_invalid_op_starts_no_step(bad: str) -> None:
    run = Run()
    opts = {"function_id": "app-child", "payload": {"data": {}}}
    wrong = Op(id="b", op=bad, opts={"duration": "no duration"})
    commands = run.ops(ran("c"), op(Opcode.INVOKE_FUNCTION, "a", opts=opts), planned("d"), wrong)
    assert kinds(commands) == [WriteMemo, EndRun]
    assert run.error["name"] == "OpInvalidError"


def deferred(step: str = "d", *, function: object = "app-later", data: object = None) -> Op:
    return op(Opcode.DEFER_ADD, step, opts={"fn_slug": function, "input": data or {}})


def aborted(target: str = "d") -> Op:
    return op(Opcode.DEFER_ABORT, f"{target}:abort", opts={"target_hashed_id": target, "fn_slug": "app-later"})


def test_a_deferred_function_is_stored_with_the_ops_of_its_answer() -> None:
    run = Run()
    commands = run.ops(deferred(data={"n": 1}), ran("a"))
    assert commands[0] == Defer("d", "app-later", b'{"n":1}')
    assert kinds(commands[1:]) == [WriteMemo, MakeCall]
    assert run.state.defers == (Deferred(step_id="d", size=7),)
    assert run.state.memos == 1


def test_a_deferred_function_alone_is_followed_by_discovery_and_repeated_changes_nothing() -> None:
    run = Run()
    assert kinds(run.ops(deferred())) == [Defer, MakeCall]
    assert run.state.defers == (Deferred(step_id="d", size=2),)
    run.ops(deferred())
    assert kinds(run.commands) == [MakeCall]
    assert run.state.calls[0].attempt == 1  # An app that says nothing new has done nothing with its attempt.


def test_an_aborted_function_is_taken_back_for_good() -> None:
    run = Run()
    run.ops(deferred(), ran("a"))
    assert kinds(run.ops(ran("b"), aborted())) == [AbortDeferred, WriteMemo, MakeCall]
    assert run.state.defers == (Deferred(step_id="d", is_abortable=False),)
    assert kinds(run.ops(ran("c"), aborted(), deferred())) == [WriteMemo, MakeCall]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (deferred(function=None), "names no function"),
        (deferred(data=[1]), "not an object"),
        (deferred(data={"text": "x" * MAX_DEFERRED_BYTES}), "bytes"),
        (op(Opcode.DEFER_ABORT, opts={}), "has no target step"),
    ],
)
def test_an_invalid_defer_is_reported_and_fails_no_run(wrong: Op, reason: str) -> None:
    run = Run()
    refused, *others = run.ops(wrong, ran("a"))
    assert isinstance(refused, RefuseDeferred)
    assert reason in refused.reason
    assert kinds(others) == [WriteMemo, MakeCall]
    assert not any(one.is_abortable for one in run.state.defers)


def test_a_run_may_defer_so_many_functions() -> None:
    run = Run()
    commands = run.ops(*(deferred(f"d{number}") for number in range(MAX_DEFERRED + 1)), ran("a"))
    assert kinds(commands) == [Defer] * MAX_DEFERRED + [RefuseDeferred, WriteMemo, MakeCall]
    assert len(run.state.defers) == MAX_DEFERRED


def test_too_much_state_fails_the_run() -> None:
    run = Run()
    for number in range(8):
        run.ops(ran(f"s{number}", data=b'"' + b"x" * (MAX_STEP_OUTPUT_BYTES - 2) + b'"'))
    assert run.error["name"] == "StateTooLargeError"
    assert "step s7" in run.error["message"]


# parallel steps


def test_an_app_older_than_parallel_modes_races_always() -> None:
    run = Run()
    run.answer(ReportedOps([planned("a"), planned("b")], races=True))
    assert kinds(run.ops(ran("a"), step="a")) == [WriteMemo, MakeCall]


def test_requests_for_discovery_while_one_is_under_way_become_one() -> None:
    run = Run()
    run.ops(*(planned(step, race=True) for step in "abcd"))
    run.ops(ran("a"), step="a")
    (first,) = run.discoveries
    for step in "bc":
        assert kinds(run.ops(ran(step), step=step)) == [WriteMemo]
    assert run.discoveries == [first]
    # The discovery saw neither b nor c; its answer has nothing new.
    assert kinds(run.ops(planned("b"), planned("c"), planned("d"), memoised=("b", "c"))) == [MakeCall]
    (second,) = run.discoveries
    assert second.attempt == 0
    assert kinds(run.ops(planned("d"))) == []
    assert run.discoveries == []


def test_a_discovery_that_has_yet_to_be_made_grants_all_wishes() -> None:
    run = Run()
    run.ops(planned("a", race=True), planned("b", race=True))
    run.ops(ran("a"), step="a")
    run.answer(AttemptFailed(BOOM))
    (retry,) = run.discoveries
    assert retry.due > NOW
    run.ops(ran("b"), step="b")
    assert run.discoveries == [retry]
    assert not run.state.discover_again


def test_steps_already_known_are_ignored() -> None:
    run = Run()
    run.ops(planned("a", race=True), op(Opcode.SLEEP, "z", opts={"duration": "1h"}))
    run.ops(ran("a"), step="a")
    commands = run.ops(ran("a"), planned("b"), op(Opcode.SLEEP, "z", opts={"duration": "1h"}), memoised=("a",))
    assert commands == [MakeCall(Call(generation=4, due=NOW, step_id="b", name="step b", memos_seen=1))]


def test_a_targeted_call_that_leaves_its_step_undone_has_failed() -> None:
    run = Run(max_attempts=2)
    run.ops(planned("a"), planned("b"))
    run.ops(planned("a"), step="a")
    assert next(call for call in run.state.calls if call.step_id == "a").attempt == 1
    run.ops(planned("a"), step="a")
    assert run.error["name"] == "NothingAskedError"


def test_a_step_not_found_since_another_won_is_given_up() -> None:
    run = Run()
    run.ops(planned("a", race=True), planned("b", race=True))
    run.ops(ran("b"), step="b")
    run.ops(op(Opcode.STEP_NOT_FOUND, "a"), step="a")
    assert run.state.status == RunStatus.RUNNING
    assert [call.step_id for call in run.state.calls] == ["step"]


def unexpected() -> AttemptFailed:
    return AttemptFailed(ErrorData(name="StepUnexpectedError", code="step_unexpected", message="gone"))


def test_an_error_that_says_the_target_was_not_found_counts_as_that_op() -> None:
    run = Run()
    run.ops(planned("a", race=True), planned("b", race=True))
    run.ops(ran("b"), step="b")
    run.answer(unexpected(), step="a")
    assert run.state.status == RunStatus.RUNNING
    assert [call.step_id for call in run.state.calls] == ["step"]
    run.ops(planned("c"), planned("d"))
    run.answer(unexpected(), step="c")
    assert (run.error["name"], run.error["message"]) == ("StepUnexpectedError", "gone")


def test_a_parallel_step_that_disappears_after_another_ended_fails_the_run() -> None:
    """Without a race the function waits for all of its branches, so no other branch can have won."""
    run = Run()
    run.ops(planned("a"), planned("b"))
    run.ops(ran("b"), step="b")
    run.ops(op(Opcode.STEP_NOT_FOUND, "a"), step="a")
    assert run.error["name"] == "StepNotFoundError"


def test_an_executed_step_may_say_that_it_races() -> None:
    """If the op has no time, the request began with the call."""
    run = Run()
    run.ops(planned("a"), planned("b"))
    run.ops(msgspec.structs.replace(ran("a"), opts={"parallelMode": "race"}), step="a")
    assert "step" in [call.step_id for call in run.state.calls]


# sleeps and waits


@pytest.mark.parametrize(
    ("sleep", "until"),
    [
        (op(Opcode.SLEEP, opts={"duration": "90s"}), NOW + 90_000),
        (op(Opcode.SLEEP, name="1500ms"), NOW + 1500),
        (op(Opcode.SLEEP, name="2023-11-14T22:14:20Z"), NOW + 60_000),
        (op(Opcode.SLEEP, name="2001-01-01T00:00:00Z"), NOW),
    ],
    ids=["opts", "name", "date", "past"],
)
def test_sleep_ends_at_its_time(sleep: Op, until: int) -> None:
    run = Run()
    assert run.ops(sleep) == [Sleep("a", "step a", until)]
    assert run.feed(TimerFired("a"))[:2] == [CloseWait("a"), WriteMemo("a", "step a", Opcode.SLEEP, b"null")]
    assert len(run.discoveries) == 1
    assert run.feed(TimerFired("a")) == []


def test_signal_wait_ends_after_a_year() -> None:
    run = Run()
    (command,) = run.ops(op(Opcode.WAIT_FOR_SIGNAL, opts={"signal": "go", "conflict": "replace"}))
    assert isinstance(command, AwaitSignal)
    assert command.replaces
    assert command.until == NOW + 365 * 86_400_000


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (op(Opcode.SLEEP, name="soon"), "invalid duration 'soon'"),
        (op(Opcode.SLEEP, name="367d"), "at most 366 days"),
        (op(Opcode.SLEEP, opts={"duration": 5}), "must be a string"),
        (op(Opcode.WAIT_FOR_EVENT, opts={"timeout": "1h"}), "names none"),
        (op(Opcode.WAIT_FOR_EVENT, opts={"event": "x" * 600, "timeout": "1h"}), "600 characters"),
        (op(Opcode.WAIT_FOR_EVENT, opts={"event": "x", "if": "async.data.x ==", "timeout": "1h"}), "not valid"),
        (op(Opcode.WAIT_FOR_EVENT, opts={"event": "x", "if": "async.total > 1", "timeout": "1h"}), "async.data.total"),
        (op(Opcode.WAIT_FOR_EVENT, opts={"event": "x", "timeout": "later"}), "invalid duration"),
        (op(Opcode.WAIT_FOR_SIGNAL, opts={}), "names none"),
        (op(Opcode.WAIT_FOR_SIGNAL, opts={"signal": "x", "conflict": "hope"}), "'hope'"),
        (op(Opcode.INVOKE_FUNCTION, opts={}), "names none"),
        (op(Opcode.INVOKE_FUNCTION, opts={"function_id": "f", "payload": {"data": [1]}}), "not an object"),
        (Op(id="a", op="Dance", name="step a"), "'Dance'"),
    ],
)
def test_an_invalid_op_fails_the_run_and_names_the_step(bad: Op, reason: str) -> None:
    run = Run()
    run.ops(bad)
    assert run.error["name"] == "OpInvalidError"
    assert "step a" in run.error["message"]
    assert reason in run.error["message"]


# requests


def test_a_request_is_tried_again_then_memoised_as_an_error() -> None:
    run = Run(max_attempts=2)
    (command,) = run.ops(
        op(Opcode.GATEWAY, opts={"url": "https://example.com", "headers": {"authorization": "s3cret"}})
    )
    assert isinstance(command, MakeRequest)
    assert "s3cret" not in repr(command)
    failed = RequestFinished("a", command.generation, b'{"error":{}}', failed=True, is_retriable=True)
    (again,) = run.feed(failed)
    assert isinstance(again, MakeRequest)
    assert (again.attempt, again.scheduled_at, again.opts) == (1, NOW + 1000, None)
    assert run.feed(failed) == [], "the first attempt's outcome is stale"
    failed = RequestFinished("a", again.generation, b'{"error":{}}', failed=True, is_retriable=True)
    assert kinds(run.feed(failed)) == [CloseWait, WriteMemo, MakeCall]


def test_the_run_state_does_not_hold_the_content_of_a_request() -> None:
    from durably.engine.core.run_state import encode_run_state

    run = Run()
    run.ops(op(Opcode.AI_GATEWAY, opts={"url": "https://example.com", "auth_key": "s3cret"}))
    assert b"s3cret" not in encode_run_state(run.state)


def test_a_request_lost_at_a_restart_is_asked_for_again_and_keeps_its_attempts() -> None:
    run = Run(max_attempts=3)
    (command,) = run.ops(op(Opcode.GATEWAY, opts={"url": "u"}))
    assert isinstance(command, MakeRequest)
    run.feed(RequestFinished("a", command.generation, b"{}", failed=True, is_retriable=True))
    assert kinds(run.feed(Recovered())) == [MakeCall]
    (again,) = run.ops(op(Opcode.GATEWAY, opts={"url": "u"}))
    assert isinstance(again, MakeRequest)
    assert (again.attempt, again.opts) == (1, {"url": "u"})
    run.feed(RequestFinished("a", again.generation, b'{"data":1}'))
    assert run.state.memos == 1


def test_a_lost_request_that_the_function_asks_for_no_more_is_forgotten() -> None:
    run = Run()
    run.ops(op(Opcode.GATEWAY, "a", opts={"url": "u"}), op(Opcode.SLEEP, "b", name="1h"))
    run.feed(Recovered())
    run.ops(op(Opcode.SLEEP, "b", name="1h"))
    assert [wait.step_id for wait in run.state.waits] == ["b"]


# checkpoints


def test_checkpoint_memoises_and_the_call_continues_at_a_first_attempt() -> None:
    run = Run()
    run.answer(AttemptFailed(BOOM))
    (call,) = run.state.calls
    commands = run.feed(Checkpointed(call.generation, [ran("a"), planned("b"), ran("c")]))
    assert [command.attempts for command in commands if isinstance(command, WriteMemo)] == [2, 1]
    assert [(call.generation, call.attempt) for call in run.state.calls] == [(2, 0)]
    run.ops(raised("d"))
    assert run.state.calls[0].attempt == 1


def test_a_checkpoint_that_is_too_large_is_refused_whole() -> None:
    run = Run()
    before = run.state
    with pytest.raises(TooLargeError, match="step b"):
        run.feed(Checkpointed(1, [ran("a"), ran("b", data=b'"' + b"x" * MAX_STEP_OUTPUT_BYTES + b'"')]))
    assert run.state == before


# the rest


def test_a_step_that_fails_beside_a_wish_for_discovery_uses_up_its_attempts() -> None:
    run = Run(max_attempts=2)
    again = Op(op=Opcode.DISCOVERY_REQUEST)
    run.ops(again, op(Opcode.STEP_ERROR, error=BOOM))
    assert [call.attempt for call in run.discoveries] == [1]
    run.ops(again, op(Opcode.STEP_ERROR, error=BOOM))
    assert kinds(run.commands) == [WriteMemo, MakeCall]


def test_an_app_that_only_asks_for_discovery_uses_up_its_attempts() -> None:
    run = Run(max_attempts=3)
    for attempt in (1, 2):
        run.ops(Op(op=Opcode.DISCOVERY_REQUEST), op(Opcode.STEP_ERROR, error=BOOM), memoised=("a",))
        assert [call.attempt for call in run.discoveries] == [attempt]
    run.ops(Op(op=Opcode.DISCOVERY_REQUEST))
    assert run.error["name"] == "NothingAskedError"


def test_recovery_gives_calls_under_way_a_new_generation_and_leaves_others() -> None:
    run = Run()
    run.ops(planned("a"), planned("b"))
    run.ops(raised("a"), step="a")
    (b, a) = run.state.calls
    assert a.due > NOW
    assert run.feed(Recovered()) == [MakeCall(msgspec.structs.replace(b, generation=a.generation + 1))]
    assert {call.generation for call in run.state.calls} == {a.generation, a.generation + 1}


def test_a_clock_that_was_set_back_neither_strands_a_call_at_a_restart_nor_loses_a_wish_for_discovery() -> None:
    run = Run()
    run.ops(planned("a", race=True), planned("b", race=True))
    run.ops(ran("a"), step="a")
    run.now -= 60_000
    run.ops(ran("b"), step="b")
    assert run.state.discover_again
    (command,) = run.feed(Recovered())
    assert isinstance(command, MakeCall)
    assert (command.call.is_discovery, command.call.due) == (True, run.now)
