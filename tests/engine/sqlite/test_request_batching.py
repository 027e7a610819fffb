"""One answer to several calls that share a request."""

from durably.engine.core.calls import Answer, AttemptFailed, ReportedOps, Returned, Unreached
from durably.engine.core.run_state import Call
from durably.engine.sqlite.after_commit import ScheduledCall
from durably.engine.sqlite.call_dispatch import answers_of
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Op

CALLS = [
    ScheduledCall(1, Call(generation=number, due=0, step_id=name), "f") for number, name in enumerate("abc", start=1)
]
ERROR = ErrorData(message="broken")


def split(answer: Answer) -> dict[str, Answer | None]:
    return {due.call.step_id: own for due, own in answers_of(CALLS, answer)}


def ops(*ids: str) -> list[Op]:
    return [Op(id=step_id, op="StepRun") for step_id in ids]


def test_each_call_gets_its_ops() -> None:
    assert split(ReportedOps(ops("c", "a", "b"))) == {
        "a": ReportedOps(ops("a")),
        "b": ReportedOps(ops("b")),
        "c": ReportedOps(ops("c")),
    }


def test_calls_without_an_answer_are_repeated() -> None:
    assert split(ReportedOps(ops("a"))) == {"a": ReportedOps(ops("a")), "b": None, "c": None}
    assert split(ReportedOps(ops("b"))) == {"a": None, "b": ReportedOps(ops("b")), "c": None}


def test_ops_without_a_call_belong_to_the_first_call() -> None:
    assert split(ReportedOps(ops("x", "b"))) == {"a": ReportedOps(ops("x")), "b": ReportedOps(ops("b")), "c": None}
    assert split(ReportedOps([])) == {"a": ReportedOps([]), "b": None, "c": None}


def test_a_failed_request_fails_one_attempt() -> None:
    for answer in (AttemptFailed(ERROR), Returned(b"1")):
        assert split(answer) == {"a": answer, "b": None, "c": None}


def test_unreachable_app_counts_for_all_calls_of_the_request() -> None:
    answer = Unreached(ERROR)
    assert split(answer) == {"a": answer, "b": answer, "c": answer}
