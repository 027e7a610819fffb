"""Answers to in-process calls equal those that an engine reads from the HTTP response."""

import asyncio
import copy
import datetime as dt
import logging
from typing import Any

import msgspec
import pytest

from durably import Client, Context, ContextSync, NonRetriableError, RetryAfterError, TriggerEvent
from durably.comm import CommHandler, CommResponse
from durably.embedded.calls import answer_of, run_call, run_call_sync
from durably.embedded.worker import AppLoop, LocalWorker
from durably.embedded.worker_resource import CallAnswer
from durably.engine.core.calls import Answer, AttemptFailed, CallData, Returned, Unreached, failed, read_answer
from durably.engine.core.run_state import Call
from durably.engine.model.settings import SystemClock
from durably.execution import FoundSteps, Outcome, Raised, StepReport
from durably.execution import Returned as FunctionReturned
from durably.protocol.errors import ErrorData
from durably.protocol.headers import Header
from durably.protocol.limits import MAX_REQUEST_BYTES, MAX_STEP_OUTPUT_BYTES
from durably.protocol.opcodes import Op, Opcode

NOW = 1_700_000_000_000


class StillClock(SystemClock):
    def now(self) -> int:
        return NOW


def run_report(step_id: str, output: Any = msgspec.UNSET, error: BaseException | None = None) -> StepReport:
    return StepReport(Op(id=step_id, op=Opcode.STEP_RUN, display_name=step_id), output=output, error=error)


def raised(error: BaseException) -> BaseException:
    """An error with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


OUTCOMES: dict[str, Outcome] = {
    "output": FunctionReturned({"a": [1, None, "ü"]}),
    "no output": FunctionReturned(msgspec.UNSET),
    "output that is not JSON": FunctionReturned(object()),
    "output that is too large": FunctionReturned("x" * MAX_STEP_OUTPUT_BYTES),
    "error": Raised(raised(ValueError("no"))),
    "final error": Raised(raised(NonRetriableError("never"))),
    "long error": Raised(raised(ValueError("x" * 1_000_000))),
    "error with a delay": Raised(raised(RetryAfterError("later", "90s"))),
    "error with a delay that is clipped": Raised(raised(RetryAfterError("later", "90d"))),
    "error with a timestamp": Raised(raised(RetryAfterError("later", dt.datetime(2023, 11, 15, tzinfo=dt.UTC)))),
    "steps": FoundSteps([run_report("a", 1), run_report("b", {"c": None})]),
    "failed step": FoundSteps([run_report("a", 1), run_report("b", error=raised(ValueError("no")))]),
    "failed step with a delay": FoundSteps([run_report("a", error=raised(RetryAfterError("later", "5m")))]),
    "several failed steps": FoundSteps(
        [run_report("a", error=raised(RetryAfterError("x", "5m"))), run_report("b", error=raised(ValueError("no")))]
    ),
    "options": FoundSteps(
        [StepReport(Op(id="a", op=Opcode.INVOKE_FUNCTION, opts={"payload": {"data": {"k": (1, 2)}}}))]
    ),
}


def over_http(outcome: Outcome) -> Answer:
    response = CommResponse.from_call_result(outcome)
    headers = {Header.SDK.value: "test", **response.headers}
    return read_answer(int(response.status_code), headers, response.body, NOW)


@pytest.mark.parametrize("name", OUTCOMES)
def test_answer_is_that_of_the_http_response(name: str) -> None:
    outcome = OUTCOMES[name]
    expected = over_http(_copied(outcome))
    answer = answer_of(_copied(outcome), StillClock())
    assert _comparable(answer) == _comparable(expected)
    assert _comparable(sent_by_a_follower(answer)) == _comparable(expected)


def sent_by_a_follower(answer: Answer) -> Answer:
    sent = msgspec.json.encode(CallAnswer(1, answer))
    return msgspec.json.decode(sent, type=CallAnswer).answer


def _copied(outcome: Outcome) -> Outcome:
    """Copy reports, because encoding changes them and their ops."""
    if not isinstance(outcome, FoundSteps):
        return outcome
    return FoundSteps([msgspec.structs.replace(report, op=copy.copy(report.op)) for report in outcome.reports])


def _comparable(answer: Answer) -> Any:
    return type(answer), msgspec.to_builtins(msgspec.json.decode(msgspec.json.encode(answer)))


@pytest.mark.parametrize(
    "answer", [Returned(b"1"), Unreached(ErrorData(name="N", message="m")), failed("N", "m", no_retry=True)]
)
def test_answer_of_a_follower_arrives_unchanged(answer: Answer) -> None:
    assert sent_by_a_follower(answer) == answer


def test_answer_above_the_limit_of_bodies_fails_the_run() -> None:
    output = "x" * MAX_STEP_OUTPUT_BYTES
    found = FoundSteps([run_report(str(number), output) for number in range(MAX_REQUEST_BYTES // len(output) + 1)])
    answer = answer_of(found, StillClock())
    assert isinstance(answer, AttemptFailed)
    assert (answer.error.name, answer.no_retry) == ("AnswerTooLargeError", True)


def test_options_in_an_answer_are_a_copy() -> None:
    data = {"k": 1}
    [op] = answer_of(  # type: ignore[union-attr]
        FoundSteps([StepReport(Op(id="a", op=Opcode.INVOKE_FUNCTION, opts={"payload": {"data": data}}))]), StillClock()
    ).ops
    data["k"] = 2
    assert op.opts == {"payload": {"data": {"k": 1}}}


def call_data(function_id: str) -> CallData:
    return CallData(
        run_id="01ARZ3NDEKTSV4RRFFQ69G5FAV",
        function_id=function_id,
        call=Call(generation=1, due=0),
        max_attempts=1,
        disable_immediate=False,
        events=[msgspec.json.encode({"name": "f", "data": {}})],
        memos=[],
    )


@pytest.mark.parametrize("is_sync", [False, True])
async def test_an_exception_that_leaves_the_code_of_the_app_is_a_failed_attempt(is_sync: bool) -> None:
    class BadLogger(logging.Logger):
        def error(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("the log is closed")

    client = Client(app_id="app", is_production=False, logger=BadLogger("bad"))

    def fail() -> None:
        raise ValueError("no")

    async def function(ctx: Context) -> None:
        fail()

    def function_sync(ctx: ContextSync) -> None:
        fail()

    handler: Any = function_sync if is_sync else function
    served = client.create_function(fn_id="f", trigger=TriggerEvent(event="f"))(handler)
    comm = CommHandler(client=client, framework="test", functions=[served])
    data = call_data("app-f")
    checkpoints: Any = None
    if is_sync:
        answer = run_call_sync(comm, data, checkpoints, StillClock())
    else:
        answer = await run_call(comm, data, checkpoints, StillClock())
    assert isinstance(answer, AttemptFailed)
    assert (answer.error.name, answer.error.message) == ("OSError", "the log is closed")


async def test_a_call_that_cancels_itself_is_a_failed_attempt() -> None:
    client = Client(app_id="app", is_production=False)

    @client.create_function(fn_id="f", trigger=TriggerEvent(event="f"))
    async def function(ctx: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60)

    comm = CommHandler(client=client, framework="test", functions=[function])
    app_loop = AppLoop()
    app_loop.loop = asyncio.get_running_loop()
    no_checkpoints: Any = None
    no_heartbeat: Any = None
    worker = LocalWorker({"app": comm}, 1, no_checkpoints, no_heartbeat, app_loop, StillClock())
    answer = await worker.run("app", call_data("app-f"))
    assert isinstance(answer, AttemptFailed)
