"""Memos of a call are those committed before it, regardless of this process's memory."""

import asyncio
import dataclasses
import datetime as dt
import tracemalloc
import uuid
from typing import Any

import msgspec
import pytest
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import ActivityEnvironment

from durably.engine.core.calls import Answer, CallData, Returned
from durably.engine.core.run_state import Call
from durably.engine.model.requests import OutboundClient
from durably.engine.temporal.messages import CallInput, ContentPage, ContentRequest, MemoRecord
from durably.engine.temporal.runs.activities import CallActivities, StepRequests
from durably.engine.temporal.runs.call_slots import CallSlots
from durably.engine.temporal.runs.contents import CONTENTS, RunContent, RunContents

EVENT = b'{"name":"order"}'


class Workflow:
    """The run's workflow, which answers queries with the committed memos, a page of one at a time."""

    def __init__(self, content: RunContent) -> None:
        self._content = content
        self.queries = 0

    def get_workflow_handle(self, workflow_id: str, *, run_id: str) -> "Workflow":
        return self

    async def query(self, name: str, request: ContentRequest, *, result_type: Any) -> ContentPage:
        after = request.after
        self.queries += 1
        memos = [MemoRecord(step, msgspec.Raw(memo)) for step, memo in self._content.memos[after : after + 1]]
        return ContentPage(len(self._content.memos), memos, [] if after else [msgspec.Raw(EVENT)])


def content(*memos: tuple[str, bytes]) -> RunContent:
    made = RunContent([EVENT])
    for step, memo in memos:
        made.add(step, memo)
    return made


A, B, C = ("a", b"1"), ("b", b"2"), ("c", b"3")


async def memos_of_call(run_id: str, committed: RunContent, workflow: Workflow) -> list[tuple[str, bytes]]:
    seen: list[CallData] = []

    async def make_call(call: CallInput, data: CallData) -> Answer:
        seen.append(data)
        return Returned(b"null")

    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(
        environment.default_info(), heartbeat_timeout=dt.timedelta(seconds=20), workflow_run_id=run_id
    )
    call = CallInput(
        run_id=run_id,
        function_id="shop-pay",
        app_id="shop",
        call=Call(generation=1, due=0),
        max_attempts=1,
        memos=len(committed.memos),
        digest=committed.digest,
    )
    requests = StepRequests("durably/process/test", OutboundClient())
    await environment.run(CallActivities(workflow, make_call, requests, CallSlots(1), asyncio.Semaphore(1)).call, call)  # type: ignore[arg-type]
    [data] = seen
    return list(data.memos)


@pytest.mark.parametrize(
    ("known", "committed", "queries"),
    [
        (None, [A, B], 2),
        ([A], [A, B], 1),
        ([A, B], [A], 0),  # The process executed a workflow task whose result did not reach the server.
        ([B, A], [A, B], 2),
        ([B], [A, B, C], 5),  # The known ones were extended first, and were not the committed ones.
    ],
)
async def test_memos_are_read_if_the_process_does_not_know_the_committed_ones(
    known: list[tuple[str, bytes]] | None, committed: list[tuple[str, bytes]], queries: int
) -> None:
    run_id = str(uuid.uuid4())
    if known is not None:
        CONTENTS.put(run_id, content(*known))
    workflow = Workflow(content(*committed))
    assert await memos_of_call(run_id, content(*committed), workflow) == committed
    assert workflow.queries == queries


async def test_reading_memos_does_not_change_the_workflows_memos() -> None:
    held = content(A)
    CONTENTS.put("run-6", held)
    await memos_of_call("run-6", content(A, B), Workflow(content(A, B)))
    assert held.memos == [A]


async def test_call_with_unreadable_memos_is_repeated_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class StoppedWorker(Workflow):
        async def query(self, name: str, request: ContentRequest, *, result_type: Any) -> ContentPage:
            raise RPCError("no poller seen for task queue recently", RPCStatusCode.FAILED_PRECONDITION, b"")

    with pytest.raises(ApplicationError, match="run run-7: its steps cannot be read now") as raised:
        await memos_of_call("run-7", content(A), StoppedWorker(content(A)))
    assert not raised.value.non_retryable
    assert raised.value.category is ApplicationErrorCategory.BENIGN, "the worker logs no traceback"
    assert [record.exc_info for record in caplog.records] == [None]


def test_the_cache_of_contents_is_bounded_however_small_they_are() -> None:
    """A process is not notified of the ends of runs whose workflows other processes execute."""
    most = 1_000_000
    cache = RunContents(most)
    tracemalloc.start()
    try:
        for run in range(2000):
            held = RunContent([str(run).encode()])
            for step in range(run % 10):
                held.add(f"{run:020}{step:020}", str(step).encode())
            cache.put(str(uuid.UUID(int=run)), held)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most / 2 < used < most * 1.2
