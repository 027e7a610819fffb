"""The workflow of a bucket. It ends when the bucket is empty."""

import asyncio
import datetime as dt

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from durably.engine.temporal.workflow_code import (
    EarliestTimer,
    history_is_long,
    now,
    pack,
    stores_clipped_levels,
    unpack,
)

from .bucket import BucketAnswer, BucketOutcome, BucketRequest, BucketState, FlowBucket

ASK_RATE_LIMIT = "durably.ask_rate_limit"
BUCKET_CONTINUES = "GateContinues"
START_HELD = "durably.start_held"
FIND_ENDED = "durably.find_ended"
_LOCAL_TIMEOUT = dt.timedelta(seconds=30)
_LATE = 5_000
"""Milliseconds after which a timer counts as late because no worker ran."""
_REPEATS_AFTER_OUTAGE = 60_000
"""Milliseconds within which senders repeat requests after an outage."""


@workflow.defn(name="durably.Gate", sandboxed=False)
class BucketWorkflow:
    @workflow.init
    def __init__(self, state: BucketState) -> None:
        self._bucket = FlowBucket(unpack(state))
        self._turn = asyncio.Lock()
        self._is_changed = True
        self._is_closing = False
        self._timer = EarliestTimer(self._wake)

    @workflow.run
    async def run(self, state: BucketState) -> None:
        await workflow.wait_condition(lambda: self._bucket.state.option is not None)
        while True:
            self._is_changed = False
            self._bucket.fire(now())
            await self._start_held()
            if self._is_idle and self._bucket.is_empty:
                return
            if history_is_long():
                self._is_closing = True
                await workflow.wait_condition(workflow.all_handlers_finished)
                workflow.continue_as_new(pack(self._bucket.state))
            self._timer.set(self._bucket.due())
            await workflow.wait_condition(lambda: self._is_changed)

    @workflow.update(name="admit")
    async def admit(self, request: BucketRequest) -> BucketAnswer:
        """Decide about an event. The same event always gets the same answer."""
        async with self._turn:
            self._bucket.state.option = request.option
            answer = self._bucket.find_answer(request.event_id)
            if answer is None:
                answer = await self._decide(request)
        self._is_changed = True
        return answer

    @admit.validator
    def check_open(self, request: BucketRequest) -> None:
        """Refuse events while this execution of the workflow ends. Senders repeat them."""
        if self._is_closing:
            raise ApplicationError("the bucket continues in another execution", type=BUCKET_CONTINUES)

    @workflow.signal(name="release")
    def release(self, run_id: str) -> None:
        """Free the singleton of a run that has ended."""
        self._bucket.release_run(run_id)
        self._is_changed = True

    @property
    def _is_idle(self) -> bool:
        return not self._is_changed and workflow.all_handlers_finished()

    async def _decide(self, request: BucketRequest) -> BucketAnswer:
        bucket = self._bucket
        bucket.fire(now())
        if request.rate_limit is not None and bucket.check(request, now()).outcome is BucketOutcome.ADMITTED:
            answer: BucketAnswer = await workflow.execute_local_activity(
                ASK_RATE_LIMIT, request, result_type=BucketAnswer, start_to_close_timeout=_LOCAL_TIMEOUT
            )
            if answer.outcome is BucketOutcome.SKIPPED:
                return answer
        singleton, holder = request.option.options.singleton, bucket.holder
        if singleton is not None and singleton.mode == "skip" and holder is not None:
            for ended in await workflow.execute_local_activity(
                FIND_ENDED, [holder], result_type=list[str], start_to_close_timeout=_LOCAL_TIMEOUT
            ):
                bucket.release_run(ended)
        stored = bucket.state.bucket
        answer = bucket.admit(request, now())
        was_clipped = answer.outcome is BucketOutcome.SKIPPED and bucket.state.bucket is not stored
        if was_clipped and not stores_clipped_levels():
            bucket.state.bucket = stored
        return answer

    async def _start_held(self) -> None:
        while self._bucket.state.releases:
            held = self._bucket.state.releases[0]
            await workflow.execute_local_activity(START_HELD, held, start_to_close_timeout=_LOCAL_TIMEOUT)
            self._bucket.state.releases.pop(0)

    def _wake(self, due: int) -> None:
        if now() > due + _LATE:
            self._bucket.keep_answers(now() + _REPEATS_AFTER_OUTAGE)
        self._is_changed = True
