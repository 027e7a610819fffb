"""Steps: what apps report of them, and how they replay memos."""

from typing import Any

import pytest

from .. import wire
from ..wire import step_hash
from .app_under_test import App
from .client import Answer

A, B = step_hash("a"), step_hash("b")


def only_op(answer: Answer) -> dict[str, Any]:
    (op,) = answer.ops
    return op  # type: ignore[no-any-return]


def test_a_step_is_run_at_once_and_reported(app: App) -> None:
    op = only_op(app.call("sequence"))
    assert (op["id"], op["op"], op["data"]) == (A, "StepRun", 1)
    assert op["displayName"] == "a"
    assert op["userland"]["id"] == "a"
    assert not op.get("error")


def test_a_memo_stands_for_its_step(app: App) -> None:
    op = only_op(app.call("sequence", steps={A: {"data": 41}}))
    assert (op["id"], op["op"], op["data"]) == (B, "StepRun", 42)


def test_a_function_ends_once_all_its_steps_have_memos(app: App) -> None:
    answer = app.call("sequence", steps={A: {"data": 41}, B: {"data": 5}})
    assert answer.output == {"a": 41, "b": 5}


def test_a_memo_of_type_and_data_is_read_alike(app: App) -> None:
    app.excuse("inngest", "it reads such a memo whole")
    answer = app.call("sequence", steps={A: {"type": "data", "data": 41}, B: {"type": "data", "data": 5}})
    assert answer.output == {"a": 41, "b": 5}


def test_with_immediate_execution_disabled_steps_are_only_planned(app: App) -> None:
    op = only_op(app.call("sequence", disable_immediate_execution=True))
    assert (op["id"], op["op"]) == (A, "StepPlanned")
    assert "data" not in op or op["data"] is None


def test_a_planned_step_is_run_when_it_is_the_target(app: App) -> None:
    op = only_op(app.call("sequence", step_id=A, disable_immediate_execution=True))
    assert (op["id"], op["op"], op["data"]) == (A, "StepRun", 1)


def test_repeated_ids_are_numbered(app: App) -> None:
    hashes = [step_hash("same"), step_hash("same", 1), step_hash("same", 2)]
    memos: dict[str, Any] = {}
    for index, hashed in enumerate(hashes):
        op = only_op(app.call("repeat", steps=memos))
        assert (op["id"], op["data"]) == (hashed, index)
        assert (op["userland"].get("index") or 0) == index
        memos[hashed] = {"data": op["data"]}
    assert app.call("repeat", steps=memos).output == [0, 1, 2]


def test_sleep_reports_its_duration(app: App) -> None:
    op = only_op(app.call("sleep"))
    assert (op["id"], op["op"]) == (step_hash("nap"), "Sleep")
    assert (op.get("opts") or {}).get("duration") or op["name"]
    assert app.call("sleep", steps={step_hash("nap"): None}).output == "awake"


def test_sleep_until_reports_its_time(app: App) -> None:
    op = only_op(app.call("sleep-until"))
    until = (op.get("opts") or {}).get("duration") or op["name"]
    assert op["op"] == "Sleep"
    assert until.startswith("2100-01-01T00:00:00")


def test_wait_for_event_reports_event_and_timeout(app: App) -> None:
    wait = step_hash("wait")
    op = only_op(app.call("wait", {"id": 7}))
    assert (op["id"], op["op"]) == (wait, "WaitForEvent")
    assert op["opts"].get("event") or op["name"] == "conformance/answer"
    assert op["opts"]["if"] == "event.data.id == async.data.id"
    assert op["opts"]["timeout"] in ("1h", "60m", "3600s")


def test_an_event_that_was_waited_for_is_the_memo(app: App) -> None:
    found = wire.event("conformance/answer", {"id": 7}, id="e2", ts=1_700_000_000_000)
    answer = app.call("wait", steps={step_hash("wait"): found})
    assert answer.output == {"name": "conformance/answer", "data": {"id": 7}}


def test_a_wait_that_timed_out_has_null_for_a_memo(app: App) -> None:
    assert app.call("wait", steps={step_hash("wait"): None}).output is None


def test_invoke_reports_function_and_data(app: App) -> None:
    op = only_op(app.call("invoke"))
    assert (op["id"], op["op"]) == (step_hash("call"), "InvokeFunction")
    assert op["opts"]["function_id"] == "conformance-plain"
    assert op["opts"]["payload"]["data"] == {"n": 1}
    assert op["opts"]["timeout"] in ("1m", "60s")


def test_invoke_returns_the_memos_data(app: App) -> None:
    assert app.call("invoke", steps={step_hash("call"): {"data": {"ok": True}}}).output == {"ok": True}


def test_an_invoked_function_that_failed_fails_the_step(app: App) -> None:
    answer = app.call("invoke", steps={step_hash("call"): {"error": wire.error("child failed")}})
    assert answer.status in (400, 500)
    assert "child failed" in answer.json["message"]


def test_wait_for_signal_reports_signal_and_timeout(app: App) -> None:
    app.require("signal")
    op = only_op(app.call("signal"))
    assert (op["id"], op["op"]) == (step_hash("signal"), "WaitForSignal")
    assert op["opts"]["signal"] == "conformance-signal"
    assert op["opts"]["conflict"] == "replace"
    assert op["opts"]["timeout"] in ("1h", "60m", "3600s")
    memo = {"data": {"signal": "conformance-signal", "data": {"n": 1}}}
    answer = app.call("signal", steps={step_hash("signal"): memo})
    assert answer.output == {"signal": "conformance-signal", "data": {"n": 1}}
    assert app.call("signal", steps={step_hash("signal"): None}).output is None


def test_fetch_reports_its_request(app: App) -> None:
    app.require("fetch")
    op = only_op(app.call("fetch"))
    assert op["op"] == "Gateway"
    assert op["opts"]["url"] == "http://host.test/path"
    assert op["opts"]["method"] == "POST"
    assert op["opts"]["headers"]["x-test"] == "1"
    assert op["opts"]["body"] in ('{"n":1}', '{"n": 1}')
    memo = {"data": {"status_code": 202, "headers": {"content-type": "application/json"}, "body": '{"done": true}'}}
    assert app.call("fetch", steps={op["id"]: memo}).output == {"status": 202, "json": {"done": True}}


def test_infer_reports_its_request(app: App) -> None:
    op = only_op(app.call("infer"))
    assert (op["id"], op["op"]) == (step_hash("ask"), "AIGateway")
    assert op["opts"]["url"] == "http://provider.test/v1/chat/completions"
    assert op["opts"]["auth_key"] == "sk-conformance"
    assert op["opts"]["format"] == "openai-chat"
    assert op["opts"]["body"]["model"] == "small"
    assert op["opts"]["body"]["messages"] == [{"role": "user", "content": "hi"}]
    assert app.call("infer", steps={op["id"]: {"data": {"choices": []}}}).output == {"choices": []}


def test_send_event_is_a_step_that_sends(app: App) -> None:
    op = only_op(app.call("send"))
    assert (op["id"], op["op"]) == (step_hash("send"), "StepRun")
    (sent,) = app.engine.to("/e/")
    (event,) = sent.json
    assert (event["name"], event["data"]["n"]) == ("conformance/sent", 1)
    assert sent.headers["x-inngest-event-id-seed"]


# -- errors


def test_a_step_that_raises_is_reported_for_a_retry(app: App) -> None:
    answer = app.call("step-fail")
    op = only_op(answer)
    assert (op["id"], op["op"]) == (step_hash("bad"), "StepError")
    assert op["error"]["message"] == "bad step"
    assert op["error"]["name"] in ("ValueError", "TypeError")
    assert "bad step" in op["error"]["stack"]
    assert answer.headers.get("x-inngest-no-retry", "false") == "false"


def test_on_the_last_attempt_the_step_fails_for_good(app: App) -> None:
    op = only_op(app.call("step-fail", attempt=4, max_attempts=5))
    assert op["op"] == "StepFailed"


def test_the_memo_of_a_failed_step_is_raised_and_may_be_caught(app: App) -> None:
    answer = app.call("step-fail", steps={step_hash("bad"): {"error": wire.error("bad step")}})
    assert answer.output == {"name": "ValueError", "message": "bad step"}


def test_a_non_retriable_error_in_a_step_is_final(app: App) -> None:
    """Of the step (an op), or of the function (the Python SDK): both say that it may not be retried."""
    answer = app.call("step-fail-for-good")
    if answer.status == 206:
        op = only_op(answer)
        assert op["op"] == "StepFailed" or answer.headers["x-inngest-no-retry"] == "true"
        assert op["error"]["message"] == "bad for good"
    else:
        assert answer.headers["x-inngest-no-retry"] == "true"
        assert answer.json["message"] == "bad for good"


def test_a_retry_after_error_in_a_step_names_the_time(app: App) -> None:
    answer = app.call("step-retry-after")
    assert answer.headers["retry-after"]
    assert answer.headers.get("x-inngest-no-retry", "false") == "false"
    if answer.status == 206:
        assert only_op(answer)["op"] == "StepError"


def test_a_step_inside_a_step_is_an_error(app: App) -> None:
    app.require("nested")
    op = only_op(app.call("nested"))
    assert op["id"] == step_hash("outer")
    assert op["error"]["code"] == "step_nested"


# -- parallel steps


def test_steps_found_together_are_planned_and_not_run(app: App) -> None:
    ops = app.call("parallel").ops
    assert [(op["id"], op["op"]) for op in ops] == [
        (step_hash("left"), "StepPlanned"),
        (step_hash("right"), "StepPlanned"),
    ]
    assert [(op.get("opts") or {}).get("parallelMode") for op in ops] == [None, None]


def test_each_planned_step_is_run_by_a_call_that_targets_it(app: App) -> None:
    op = only_op(app.call("parallel", step_id=step_hash("right"), disable_immediate_execution=True))
    assert (op["id"], op["op"], op["data"]) == (step_hash("right"), "StepRun", "right")


def test_a_target_is_found_beside_memos_of_other_branches(app: App) -> None:
    memos = {step_hash("left"): {"data": "left"}}
    op = only_op(app.call("parallel", step_id=step_hash("right"), steps=memos, disable_immediate_execution=True))
    assert (op["id"], op["data"]) == (step_hash("right"), "right")


def test_parallel_outputs_keep_their_order_whatever_the_order_of_memos(app: App) -> None:
    memos = {step_hash("right"): {"data": "R"}, step_hash("left"): {"data": "L"}}
    assert app.call("parallel", steps=memos).output == [["L"], ["R"]]


def test_a_target_that_is_not_found_is_an_error(app: App) -> None:
    app.excuse("inngest", "it takes the parallel group for done, and answers with no outputs")
    answer = app.call("parallel", step_id=step_hash("gone"), disable_immediate_execution=True)
    assert answer.status == 500


def test_race_mode_is_reported_to_the_engine(app: App) -> None:
    ops = app.call("race").ops
    assert [op["id"] for op in ops] == [step_hash("l1"), step_hash("r1")]
    assert {op["opts"]["parallelMode"] for op in ops} == {"race"}


def test_an_executed_step_repeats_the_mode_with_which_it_was_planned(app: App) -> None:
    op = only_op(app.call("race", step_id=step_hash("l1"), disable_immediate_execution=True))
    assert (op["op"], op["opts"]["parallelMode"]) == ("StepRun", "race")


def test_racing_branch_continues_without_the_other(app: App) -> None:
    memos = {step_hash("l1"): {"data": "l1"}}
    ops = app.call("race", steps=memos, disable_immediate_execution=True).ops
    assert step_hash("l2") in [op["id"] for op in ops]


def test_steps_of_different_kinds_are_found_together(app: App) -> None:
    ops = app.call("mixed").ops
    assert [(op["id"], op["op"]) for op in ops] == [(step_hash("left"), "StepPlanned"), (step_hash("nap"), "Sleep")]


# -- large runs and checkpoints


def test_memos_and_events_of_a_large_run_are_fetched(app: App) -> None:
    trigger = wire.event("conformance/big", {"text": "x" * 1000}, id="e", ts=1)
    app.engine.runs["01LARGE"] = [trigger], {A: {"data": "from the engine"}}
    answer = app.call("big", trigger=trigger, use_api=True, run_id="01LARGE")
    assert answer.output == {"size": 1000, "step": "from the engine"}
    assert {request.path for request in app.engine.to("/v0/")} == {"/v0/runs/01LARGE/batch", "/v0/runs/01LARGE/actions"}


@pytest.mark.parametrize("status", [200, 409, 500])
def test_each_finished_step_reaches_the_engine_once(app: App, status: int) -> None:
    """By checkpoints, or in answers; after a refused checkpoint in the answer, after a stale one not at all."""
    app.engine.checkpoint_status = status
    memos: dict[str, Any] = {}
    handed_over: list[str] = []
    for _ in range(4):
        app.engine.received.clear()
        answer = app.call("sequence", steps=memos, qi_id="queue-item", request_id="request", generation_id=1)
        checkpoints = app.engine.to("/v1/checkpoint/") if status == 200 else []
        ops = [op for request in checkpoints for op in request.json["steps"]]
        if answer.status not in (200, 206):
            assert status == 409, answer.body
            assert app.engine.to("/v1/checkpoint/")
            return
        ops += answer.ops if answer.status == 206 else []
        handed_over += [op["id"] for op in ops if op["op"] == "StepRun"]
        memos |= {op["id"]: {"data": op["data"]} for op in ops if op["op"] == "StepRun"}
        if answer.status == 200 or ops[-1]["op"] == "RunComplete":
            break
    assert handed_over == [A, B]
