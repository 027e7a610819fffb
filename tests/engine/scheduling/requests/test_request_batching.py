"""One answer to several calls that share a request."""

from durably.engine.core.answers import Answer, AttemptFailed, ReportedOps, Returned, Unreached
from durably.engine.core.run_state import Call
from durably.engine.scheduling.outbox import ScheduledCall
from durably.engine.scheduling.requests.call_dispatch import answers_of
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


def test_what_is_left_out_is_made_again() -> None:
    assert split(ReportedOps(ops("a"))) == {"a": ReportedOps(ops("a")), "b": None, "c": None}
    assert split(ReportedOps(ops("b"))) == {"a": None, "b": ReportedOps(ops("b")), "c": None}


def test_what_belongs_to_no_call_is_the_first_ones() -> None:
    assert split(ReportedOps(ops("x", "b"))) == {"a": ReportedOps(ops("x")), "b": ReportedOps(ops("b")), "c": None}
    assert split(ReportedOps([])) == {"a": ReportedOps([]), "b": None, "c": None}


def test_a_failed_request_fails_one_attempt() -> None:
    for answer in (AttemptFailed(ERROR), Returned(b"1")):
        assert split(answer) == {"a": answer, "b": None, "c": None}


def test_an_app_that_was_not_reached_was_reached_by_none() -> None:
    answer = Unreached(ERROR)
    assert split(answer) == {"a": answer, "b": answer, "c": answer}
