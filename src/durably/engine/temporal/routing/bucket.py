"""A bucket: one option's decisions about the events with one key, and its workflow.

``engine.core.flow`` makes the decisions. A bucket stores the option's state, the events of a debounce or a batch, and
the run of a singleton. Its workflow ends when it is empty.
"""

import asyncio
import datetime as dt
from enum import StrEnum

import msgspec
from temporalio import workflow
from temporalio.exceptions import ApplicationError

from durably.engine.core.flow.admission import (
    Batched,
    Debounced,
    OpenBatch,
    Skip,
    SkipReason,
    Start,
    Trigger,
    admit,
    end_batch,
    end_debounce,
    take_singleton,
)
from durably.engine.core.flow.buckets import Bucket, BucketKind, StateChange
from durably.engine.core.flow.config import Flow, read_flow
from durably.engine.temporal.messages import EventRecord
from durably.engine.temporal.workflow_code import (
    EarliestTimer,
    history_is_long,
    now,
    pack,
    unpack,
)
from durably.protocol.options import FunctionOptions
from durably.protocol.sync import FunctionConfig

MAX_BATCH_BYTES = 1024 * 1024
"""The size at which a batch closes. With one more event it is below the 2 MB limit of Temporal's payloads."""
KEPT_ANSWER = 600_000
"""Milliseconds for which the same event gets the same answer. The sender may end before it uses the first answer."""
_MAX_ANSWERS = 5000
OPTION_OF = {
    BucketKind.BATCH: "batch_events",
    BucketKind.IDEMPOTENCY: "idempotency",
    BucketKind.RATE_LIMIT: "rate_limit",
    BucketKind.DEBOUNCE: "debounce",
    BucketKind.SINGLETON: "singleton",
}
EVENT_OPTIONS = tuple(OPTION_OF.values())
"""Options that decide about events."""


class BucketOption(msgspec.Struct, frozen=True, omit_defaults=True):
    """The option of a bucket, without its key.

    ``options`` contains only this option.
    """

    workflow_id: str
    function_id: str
    kind: BucketKind
    options: FunctionOptions


class BucketRequest(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An event at a bucket: the argument of the Update ``admit``.

    - ``ts``: the event's time.
    - ``size``: its bytes.
    - ``event``: set for buckets that store events (debounce, batch).
    - ``run_id``: set for a singleton.
    - ``rate_limit``: the bucket that is checked after ``idempotency``.
    """

    option: BucketOption
    event_id: str
    ts: int
    size: int
    event: EventRecord | None = None
    run_id: str = ""
    rate_limit: BucketOption | None = None


class BucketOutcome(StrEnum):
    ADMITTED = "admitted"
    SKIPPED = "skipped"
    STORED = "stored"


class BucketAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cancels`` is the run that the new run replaces."""

    outcome: BucketOutcome
    reason: SkipReason | None = None
    cancels: str | None = None


class AnsweredEvent(msgspec.Struct, frozen=True, array_like=True):
    """An answer that the same event gets again until a time."""

    answer: BucketAnswer
    until: int


class StoredEvents(msgspec.Struct, frozen=True, omit_defaults=True):
    """Events of a debounce or a batch, for which a run starts now.

    ``replaced``: no run starts, because a later event replaced them.
    """

    function_id: str
    events: tuple[EventRecord, ...]
    replaced: bool = False


class ActiveRun(msgspec.Struct, frozen=True, array_like=True):
    """A run that has a singleton or slots, ``since`` a time."""

    run_id: str
    since: int


class StoredBucket(msgspec.Struct, frozen=True, omit_defaults=True):
    """``state`` is the encoded state of ``engine.core.flow``."""

    state: bytes
    fires_at: int | None = None
    expires: int | None = None


class BucketState(msgspec.Struct, omit_defaults=True):
    """The state of a bucket.

    ``events`` are the stored events by key. ``active`` has the run of a singleton by key. ``releases`` are events that
    left the bucket and for which it starts a run.
    """

    option: BucketOption | None = None
    bucket: StoredBucket | None = None
    next_key: int = 1
    events: dict[int, EventRecord] = {}
    active: dict[int, ActiveRun] = {}
    answers: dict[str, AnsweredEvent] = {}
    releases: list[StoredEvents] = []
    packed: bytes = b""


def option_of_bucket(workflow_id: str, flow: Flow, kind: BucketKind) -> BucketOption:
    name = OPTION_OF[kind]
    option = getattr(flow.options, name)
    if kind is not BucketKind.IDEMPOTENCY:
        unkeyed = {"if_exp": None} if kind is BucketKind.BATCH else {}
        option = msgspec.structs.replace(option, key=None, **unkeyed)
    return BucketOption(workflow_id, flow.function_id, kind, FunctionOptions(**{name: option}))


class FlowBucket:
    def __init__(self, state: BucketState) -> None:
        self.state = state

    @property
    def active_run(self) -> ActiveRun | None:
        """The run that has the singleton."""
        return next(iter(self.state.active.values()), None)

    def find_answer(self, event_id: str) -> BucketAnswer | None:
        answered = self.state.answers.get(event_id)
        return None if answered is None else answered.answer

    def check(self, request: BucketRequest, now: int) -> BucketAnswer:
        """The answer to a request, without its effects."""
        return FlowBucket(msgspec.json.decode(msgspec.json.encode(self.state), type=BucketState)).admit(request, now)

    def admit(self, request: BucketRequest, now: int) -> BucketAnswer:
        state = self.state
        state.option = request.option
        key, state.next_key = state.next_key, state.next_key + 1
        options = msgspec.structs.asdict(request.option.options)
        config = FunctionConfig(id=request.option.function_id, triggers=[], steps={}, **options)
        flow = msgspec.structs.replace(read_flow(config), expressions={})  # The bucket has the key.
        trigger = Trigger(key, {"ts": self._ts(request)}, request.size)
        admission = admit(flow, trigger, self._read, now, max_batch_bytes=MAX_BATCH_BYTES)
        self._put(admission.changes)
        if isinstance(admission.outcome, Debounced | Batched):
            assert request.event is not None
            state.events[key] = request.event
        answer = BucketAnswer(BucketOutcome.STORED)
        match admission.outcome:
            case Skip(reason):
                answer = BucketAnswer(BucketOutcome.SKIPPED, reason)
            case Debounced(dropped=dropped):
                replaced = None if dropped is None else state.events.pop(dropped, None)
                if replaced is not None and replaced.invoker is not None:
                    self._release((replaced,), replaced=True)
            case Batched(is_full=True):
                self._release(self._take_events())
            case Start() as start:
                before = None if start.cancels is None else state.active.pop(start.cancels, None)
                if start.queue_entry.singleton is not None:
                    state.active[key] = ActiveRun(request.run_id, now)
                    self._put(take_singleton(start.queue_entry, key))
                answer = BucketAnswer(BucketOutcome.ADMITTED, cancels=None if before is None else before.run_id)
        until = now + KEPT_ANSWER
        if request.option.kind is BucketKind.IDEMPOTENCY and answer.outcome is BucketOutcome.ADMITTED and state.bucket:
            until = max(until, state.bucket.expires or 0)
        state.answers[request.event_id] = AnsweredEvent(answer, until)
        if len(state.answers) > _MAX_ANSWERS:
            del state.answers[next(iter(state.answers))]
        return answer

    def _ts(self, request: BucketRequest) -> int:
        """The event's time.

        If events have the same time, the one that was received last is the latest.
        """
        if request.event is None or request.option.kind is not BucketKind.DEBOUNCE:
            return request.ts
        is_late = any(event.received_order > request.event.received_order for event in self.state.events.values())
        return request.ts - 1 if is_late else request.ts

    def release_run(self, run_id: str) -> None:
        """Free the singleton, if this run has it."""
        if self.active_run is not None and self.active_run.run_id == run_id:
            self.state.active = {}
            self.state.bucket = None

    def fire(self, now: int) -> None:
        """End a due debounce or batch, and remove expired state."""
        state = self.state
        assert state.option is not None
        bucket = Bucket(state.option.kind, state.option.function_id)
        if state.bucket is not None and state.bucket.fires_at is not None and state.bucket.fires_at <= now:
            if bucket.kind is BucketKind.DEBOUNCE:
                ended = end_debounce(bucket, self._read, now)
                change = ended[1] if ended else None
            else:
                change = end_batch(bucket, OpenBatch.decode(state.bucket.state).id, self._read)
            if change is not None:
                self._put((change,))
                self._release(self._take_events())
        if state.bucket is not None and state.bucket.expires is not None and state.bucket.expires <= now:
            state.bucket = None
        state.answers = {event_id: each for event_id, each in state.answers.items() if each.until > now}

    def due(self) -> int | None:
        """The next time at which the state changes without a request."""
        bucket, answers = self.state.bucket, self.state.answers.values()
        times = [max(each.until for each in answers)] if answers else []
        if bucket is not None:
            times += [each for each in (bucket.fires_at, bucket.expires) if each is not None]
        return min(times, default=None)

    def keep_answers(self, until: int) -> None:
        """Keep answers after an outage, because interrupted requests are repeated."""
        for event_id, each in self.state.answers.items():
            self.state.answers[event_id] = msgspec.structs.replace(each, until=max(each.until, until))

    @property
    def is_empty(self) -> bool:
        state = self.state
        return state.bucket is None and not (state.events or state.active or state.answers or state.releases)

    def _read(self, bucket_id: str) -> bytes | None:
        return None if self.state.bucket is None else self.state.bucket.state

    def _put(self, changes: tuple[StateChange, ...]) -> None:
        for change in changes:
            stored = None if change.state is None else StoredBucket(change.state, change.fires_at, change.expires)
            self.state.bucket = stored

    def _take_events(self) -> tuple[EventRecord, ...]:
        events = tuple(sorted(self.state.events.values(), key=lambda event: event.received_order))
        self.state.events = {}
        return events

    def _release(self, events: tuple[EventRecord, ...], *, replaced: bool = False) -> None:
        option = self.state.option
        assert option is not None
        self.state.releases.append(StoredEvents(option.function_id, events, replaced))


ASK_RATE_LIMIT = "durably.ask_rate_limit"
BUCKET_CONTINUES = "BucketContinues"
START_STORED = "durably.start_stored"
FIND_ENDED = "durably.find_ended"
_LOCAL_TIMEOUT = dt.timedelta(seconds=30)
_LATE = 5_000
"""Milliseconds after which a timer counts as late because no worker ran."""
_REPEATS_AFTER_OUTAGE = 60_000
"""Milliseconds within which senders repeat requests after an outage."""


@workflow.defn(name="durably.Bucket", sandboxed=False)
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
            await self._start_stored()
            if self._bucket.is_empty and not self._is_changed and workflow.all_handlers_finished():
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

    async def _decide(self, request: BucketRequest) -> BucketAnswer:
        bucket = self._bucket
        bucket.fire(now())
        if request.rate_limit is not None and bucket.check(request, now()).outcome is BucketOutcome.ADMITTED:
            answer: BucketAnswer = await workflow.execute_local_activity(
                ASK_RATE_LIMIT, request, result_type=BucketAnswer, start_to_close_timeout=_LOCAL_TIMEOUT
            )
            if answer.outcome is BucketOutcome.SKIPPED:
                return answer
        singleton, active = request.option.options.singleton, bucket.active_run
        if singleton is not None and singleton.mode == "skip" and active is not None:
            for ended in await workflow.execute_local_activity(
                FIND_ENDED, [active], result_type=list[str], start_to_close_timeout=_LOCAL_TIMEOUT
            ):
                bucket.release_run(ended)
        return bucket.admit(request, now())

    async def _start_stored(self) -> None:
        while self._bucket.state.releases:
            stored = self._bucket.state.releases[0]
            await workflow.execute_local_activity(START_STORED, stored, start_to_close_timeout=_LOCAL_TIMEOUT)
            self._bucket.state.releases.pop(0)

    def _wake(self, due: int) -> None:
        if now() > due + _LATE:
            self._bucket.keep_answers(now() + _REPEATS_AFTER_OUTAGE)
        self._is_changed = True
