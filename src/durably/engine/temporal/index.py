"""Runs in Temporal's index and from Describe, without a worker: search attributes, lists, outputs, events, changes.

The index lags, usually below a second, so routing never uses it. Its attributes contain no data of events.
"""

import asyncio
import base64
import binascii
import datetime as dt
import hashlib
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from temporalio.api.enums.v1 import EventType
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
)
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError, TimeoutError
from temporalio.service import RPCError, RPCStatusCode

from durably.engine.core.transition import encode_error
from durably.engine.model.overview import Changes
from durably.engine.model.runs import (
    Progress,
    Relation,
    Run,
    RunFilter,
    RunPage,
    RunStatus,
    StoredEvent,
    relation_by,
    to_datetime,
)
from durably.engine.temporal.client import describe, ignoring_not_found
from durably.engine.temporal.ids import event_workflow_id, run_id_of, run_workflow_id
from durably.engine.temporal.messages import (
    END,
    PROGRESS,
    RUN_MEMO,
    DeliveryRecord,
    EventRecord,
    RunInput,
    RunMemo,
)
from durably.protocol.engine_errors import NotSupportedError, SelectionInvalidError
from durably.protocol.errors import ErrorData
from durably.protocol.events import Event
from durably.temporal.namespace import indexed_type, register_and_wait

APP = SearchAttributeKey.for_keyword("DurablyApp")
FUNCTION = SearchAttributeKey.for_keyword("DurablyFunction")
EVENT = SearchAttributeKey.for_keyword("DurablyEvent")
"""The name of the event that triggered the run."""
EVENT_IDS = SearchAttributeKey.for_keyword_list("DurablyEventIds")
PARENT = SearchAttributeKey.for_keyword("DurablyParent")
"""The run that started this one."""
STATUS = SearchAttributeKey.for_keyword("DurablyStatus")
"""The run's status, if Temporal has none for it: a skipped run, or a cancelled run whose workflow failed."""

_KEYS = (APP, FUNCTION, EVENT, EVENT_IDS, PARENT, STATUS)
_RPC_TIMEOUT = dt.timedelta(seconds=10)
_MAX_TEXT = 255
"""Number of characters that SQL visibility stores keep of a Keyword."""
_MAX_WHOLE_IDS = 60
"""Maximum number of ids whose list fits into the 2 KB of a value. If a run has more events, only the random parts of
their ids are stored."""
_RANDOM_CHARACTERS = 16


def keyword(text: str) -> str:
    """A string as an index stores it."""
    return text[:_MAX_TEXT]


def short_event_id(event_id: str) -> str:
    """The random part of an event's id. A large batch has it instead of the id."""
    return event_id[-_RANDOM_CHARACTERS:]


def search_attributes_of(run: RunInput) -> TypedSearchAttributes:
    ids: Sequence[str] = [event.id for event in run.events]
    if len(ids) > _MAX_WHOLE_IDS:
        ids = [short_event_id(each) for each in ids]
    pairs: list[SearchAttributePair[Any]] = [
        SearchAttributePair(APP, keyword(run.app_id)),
        SearchAttributePair(FUNCTION, keyword(run.function_id)),
        SearchAttributePair(EVENT, keyword(run.events[0].name)),
        SearchAttributePair(EVENT_IDS, ids),
    ]
    if run.outcome is not None and run.outcome.status is RunStatus.SKIPPED:
        pairs.append(SearchAttributePair(STATUS, RunStatus.SKIPPED.value))
    if run.parent is not None:
        pairs.append(SearchAttributePair(PARENT, run.parent))
    return TypedSearchAttributes(pairs)


async def register_search_attributes(client: Client) -> None:
    """Register the attributes that the server lacks, and wait until it accepts them.

    Raises ``SearchAttributeError`` with the commands to run if the server does not let this client register them, and
    ``TemporalCredentialsError`` if it denies the whole namespace.
    """
    await register_and_wait(client, {key.name: indexed_type(key) for key in _KEYS}, _RPC_TIMEOUT)


_STATUS_OF_WORKFLOW = {
    WorkflowExecutionStatus.RUNNING: RunStatus.RUNNING,
    WorkflowExecutionStatus.COMPLETED: RunStatus.COMPLETED,
    WorkflowExecutionStatus.CANCELED: RunStatus.CANCELLED,
    WorkflowExecutionStatus.TERMINATED: RunStatus.CANCELLED,
}
_MOST_AT_ONCE = 16
"""Maximum number of concurrent requests to the server for one page of runs."""
_MOST_OF_SUFFIX = 10_000
"""Maximum number of runs whose ids are compared for one list."""
_LONGEST_OUTPUT = 16 * 1024
_WHOLE_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}\Z")
_OF_INVALID_CURSORS = (None, RPCStatusCode.INVALID_ARGUMENT, RPCStatusCode.UNKNOWN)
LONGEST_WAIT_SECONDS = 20.0
_POLL_SECONDS = 1.0
_RUNS = "WorkflowType = 'durably.Run' AND ExecutionStatus != 'ContinuedAsNew'"

_QUERIES: dict[RunStatus, str] = {
    RunStatus.RUNNING: "ExecutionStatus = 'Running'",
    RunStatus.COMPLETED: f"ExecutionStatus = 'Completed' AND {STATUS.name} IS NULL",
    RunStatus.FAILED: f"ExecutionStatus IN ('Failed', 'TimedOut') AND {STATUS.name} IS NULL",
    RunStatus.CANCELLED: f"(ExecutionStatus IN ('Canceled', 'Terminated') OR {STATUS.name} = 'Cancelled')",
    RunStatus.SKIPPED: f"{STATUS.name} = 'Skipped'",
}


def quote(text: str) -> str:
    """A quoted string for a query of Temporal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


class RunQuery(RunFilter, frozen=True, kw_only=True):
    """The runs of a list, by conditions of the index."""

    event_id: str | None = None
    parent: str | None = None

    @property
    def query(self) -> str:
        """The conditions of a query. Raises ``NotSupportedError`` for scheduled runs."""
        if self.status is RunStatus.SCHEDULED:
            raise NotSupportedError(
                "lists of an engine on Temporal do not distinguish scheduled and running runs: select running ones, "
                "which include both"
            )
        clauses = [_RUNS]
        if self.status is not None:
            clauses.append(_QUERIES[self.status])
        for key, text in ((FUNCTION, self.function_id), (APP, self.app_id), (EVENT, self.event_name)):
            if text is not None:
                clauses.append(f"{key.name} = {quote(keyword(text))}")
        if self.parent is not None:
            clauses.append(f"{PARENT.name} = {quote(self.parent)}")
        if self.event_id is not None:
            ids = f"{quote(self.event_id)}, {quote(short_event_id(self.event_id))}"
            clauses.append(f"{EVENT_IDS.name} IN ({ids})")
        for condition, at in (
            ("StartTime >=", self.started_after),
            ("StartTime <", self.started_before),
        ):
            if at is not None:
                utc = at.astimezone(dt.UTC).isoformat(timespec="microseconds")
                clauses.append(f"{condition} {quote(utc.replace('+00:00', 'Z'))}")
        return " AND ".join(clauses)


class RunLists:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._slots = asyncio.Semaphore(_MOST_AT_ONCE)
        self._counted_at = 0.0
        self._counting: asyncio.Task[str] | None = None

    # one run

    async def describe(self, run_id: str) -> WorkflowExecution | None:
        """The run's workflow, or ``None``."""
        described = await describe(self._client, run_workflow_id(run_id))
        return described if described is not None and is_run(described) else None

    async def view(self, execution: WorkflowExecution, *, has_output: bool = True) -> Run:
        run_id = run_id_of(execution.id)
        memo = await memo_of(execution)
        status = status_of(execution)
        output: msgspec.Raw | None = None
        if has_output and status.has_ended:
            output = await execution.memo_value(END, None, type_hint=msgspec.Raw)
            if output is None:
                async with self._slots:
                    output = await self.output(run_id)
        return Run(
            id=run_id,
            function_id=memo.function_id,
            app_id=memo.app_id,
            status=status,
            event_ids=list(memo.event_ids),
            event_id=memo.event_ids[0],
            event_name=memo.event_name,
            created_at=execution.start_time,
            started_at=execution.start_time,
            ended_at=execution.close_time,
            output=output,
            attempt=0,
            max_attempts=memo.max_attempts,
            rerun_of=memo.rerun_of,
            progress=await execution.memo_value(PROGRESS, None, type_hint=Progress),
        )

    async def views(self, executions: Iterable[WorkflowExecution], *, has_output: bool = True) -> list[Run]:
        return list(await asyncio.gather(*(self.view(each, has_output=has_output) for each in executions)))

    async def link(self, execution: WorkflowExecution, *, has_relation: bool = True) -> Run:
        """A run without its output, with its relation to the run that started it."""
        run = await self.view(execution, has_output=False)
        if not has_relation:
            return run
        memo = await memo_of(execution)
        relation = relation_by(memo.event_name) if memo.rerun_of is None else Relation.RERUN
        return msgspec.structs.replace(run, relation=relation, step=memo.parent_step)

    async def output(self, run_id: str) -> msgspec.Raw:
        """The output of an ended run."""
        handle = self._client.get_workflow_handle(run_workflow_id(run_id), result_type=msgspec.Raw)
        try:
            output: msgspec.Raw = await handle.result()
            return output
        except WorkflowFailureError as error:
            return _error_output(error.cause)

    async def input(self, run_id: str) -> RunInput | None:
        """The input of a run with its events, from the first event of its history."""
        handle = self._client.get_workflow_handle(run_workflow_id(run_id))
        with ignoring_not_found():
            async for event in handle.fetch_history_events(page_size=1):
                assert event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED
                payloads = event.workflow_execution_started_event_attributes.input.payloads
                (run,) = await self._client.data_converter.decode(payloads, [RunInput])
                return run  # type: ignore[no-any-return]
        return None

    async def sent_event(self, event_id: str) -> EventRecord | None:
        """An event from its own workflow, which invocations have."""
        handle = self._client.get_workflow_handle(event_workflow_id(event_id))
        with ignoring_not_found():
            async for event in handle.fetch_history_events(page_size=1):
                payloads = event.workflow_execution_started_event_attributes.input.payloads
                (delivery,) = await self._client.data_converter.decode(payloads, [DeliveryRecord])
                return delivery.event  # type: ignore[no-any-return]
        return None

    # the index

    async def read(self, wanted: RunQuery) -> list[WorkflowExecution]:
        """All runs, newest first."""
        found = [each async for each in self._client.list_workflows(wanted.query) if is_run(each)]
        return sorted(found, key=lambda each: (each.start_time, each.id), reverse=True)

    async def page(self, wanted: RunQuery, limit: int, cursor: str | None) -> RunPage:
        """A page of runs in the order of the index. ``cursor`` is the server's.

        Raises ``SelectionInvalidError`` for an unknown cursor.
        """
        try:
            token = None if cursor is None else base64.b64decode(cursor, altchars=b"-_", validate=True)
            pages = self._client.list_workflows(wanted.query, page_size=limit, next_page_token=token)
            await pages.fetch_next_page()
        except (binascii.Error, RPCError) as error:
            if cursor is None or getattr(error, "status", None) not in _OF_INVALID_CURSORS:
                raise
            raise SelectionInvalidError(
                f"the cursor {cursor!r} is not one of this engine, which are those of `GET /v1/search/runs`"
            ) from None
        runs = await self.views(each for each in pages.current_page or () if is_run(each))
        after = base64.urlsafe_b64encode(pages.next_page_token).decode() if pages.next_page_token else None
        return RunPage(runs=runs, cursor=after)

    async def _find_by_suffix(self, wanted: RunQuery, id_suffix: str, limit: int) -> list[Run]:
        """Runs with the end of an id. Raises ``NotSupportedError`` if too many ids must be compared."""
        found: list[WorkflowExecution] = []
        seen = 0
        async for each in self._client.list_workflows(wanted.query):
            seen += 1
            if each.id.endswith(id_suffix) and is_run(each):
                found.append(each)
            if len(found) == limit:
                break
            if seen == _MOST_OF_SUFFIX:
                raise NotSupportedError(
                    f"an engine on Temporal compares the ids of {_MOST_OF_SUFFIX} runs at most: give the whole id "
                    f"instead of {id_suffix!r}"
                )
        return await self.views(found)

    async def search(self, wanted: RunQuery, limit: int, cursor: str | None) -> RunPage:
        """A page of runs. Outputs of more than 16 KiB are omitted."""
        id = None if wanted.id is None else wanted.id.strip().upper()
        if id is None:
            page = await self.page(wanted, limit, cursor)
        elif _WHOLE_ID.match(id) is None:
            page = RunPage(runs=await self._find_by_suffix(wanted, id, limit), cursor=None)
        elif (run := await self.describe(id)) is not None and await self._fits(run, wanted):
            page = RunPage(runs=[await self.view(run)], cursor=None)
        else:
            page = await self.page(msgspec.structs.replace(wanted, event_id=id), limit, cursor)
        runs = [
            msgspec.structs.replace(run, output=None) if len(bytes(run.output or b"")) > _LONGEST_OUTPUT else run
            for run in page.runs
        ]
        return RunPage(runs=runs, cursor=page.cursor)

    async def wait_for_changes(self, after: int | None, run_id: str | None) -> Changes:
        """Wait for another position than ``after``, which is that of a state. Positions are compared for equality."""
        until = time.monotonic() + LONGEST_WAIT_SECONDS
        while True:
            position = await self._position(run_id)
            if position != after or time.monotonic() >= until:
                return Changes(position=position)
            await asyncio.sleep(_POLL_SECONDS)

    async def _position(self, run_id: str | None) -> int:
        if run_id is None:
            state = await self._state()
        elif isinstance(described := await self.describe(run_id), WorkflowExecutionDescription):
            pending = [
                (each.activity_id, each.state, each.attempt) for each in described.raw_description.pending_activities
            ]
            state = f"{described.history_length} {described.status} {pending}"
        else:
            state = ""
        return int.from_bytes(hashlib.sha256(state.encode()).digest()[:6]) + 1  # Below 2^53.

    async def _state(self) -> str:
        """The numbers of runs by Temporal's status. Each start and each end changes them.

        They are at most a second old: all waiters share a request.
        """
        now = time.monotonic()
        if self._counting is None or (self._counting.done() and now - self._counted_at >= _POLL_SECONDS):
            self._counted_at, self._counting = now, asyncio.create_task(self._count())
        return await asyncio.shield(self._counting)

    async def _count(self) -> str:
        counted = await self._client.count_workflows(f"{RunQuery().query} GROUP BY ExecutionStatus")
        return repr(sorted((str(group.group_values), group.count) for group in counted.groups))

    async def _fits(self, execution: WorkflowExecution, wanted: RunQuery) -> bool:
        memo = await memo_of(execution)
        pairs = (
            (wanted.status, status_of(execution)),
            (wanted.function_id, memo.function_id),
            (wanted.app_id, memo.app_id),
            (wanted.event_name, memo.event_name),
        )
        return all(each in (None, own) for each, own in pairs)

    # events

    async def event(self, event_id: str) -> StoredEvent | None:
        """An event from a run that it started; ``None`` if it started no run or the index lags."""
        for run in await self.read(RunQuery(event_id=event_id)):
            given = await self.input(run_id_of(run.id))
            for event in () if given is None else given.events:
                if event.id == event_id:
                    return stored_event(event)
        return None

    async def event_runs(self, event_id: str) -> list[Run]:
        """The runs that an event started, in their order, and their reruns."""
        runs = await self.views(reversed(await self.read(RunQuery(event_id=event_id))))
        return [run for run in runs if event_id in run.event_ids]


def status_of(execution: WorkflowExecution) -> RunStatus:
    """The status of a workflow. A live run counts as running.

    The server does not know whether the app was called.
    """
    own = execution.typed_search_attributes.get(STATUS)
    if own is not None:
        return RunStatus(own)
    return RunStatus.FAILED if execution.status is None else _STATUS_OF_WORKFLOW.get(execution.status, RunStatus.FAILED)


def is_run(execution: WorkflowExecution) -> bool:
    """Whether the engine started the workflow.

    Other clients of the namespace can start workflows of any type and id.
    """
    return RUN_MEMO in execution.raw_info.memo.fields


async def memo_of(execution: WorkflowExecution) -> RunMemo:
    memo: RunMemo = await execution.memo_value(RUN_MEMO, type_hint=RunMemo)
    return memo


def _error_output(cause: BaseException | None) -> msgspec.Raw:
    """The error of a run, as it wrote it, or as Temporal reports it."""
    if isinstance(cause, ApplicationError) and cause.details:
        return msgspec.Raw(msgspec.json.encode(cause.details[0]))
    match cause:
        case CancelledError():
            if cause.details:
                return msgspec.Raw(msgspec.json.encode(cause.details[0]))
            name, message = "FunctionCancelledError", "the run was cancelled"
        case TerminatedError():
            name, message = "FunctionCancelledError", f"the run was terminated on Temporal: {cause}"
        case TimeoutError():
            name, message = "RunTimedOutError", "the run's workflow has timed out on Temporal"
        case _:
            name, message = type(cause).__name__, str(cause)
    return msgspec.Raw(encode_error(ErrorData(name=name, message=message)))


def stored_event(event: EventRecord) -> StoredEvent:
    return StoredEvent.of(event.id, msgspec.json.decode(event.body, type=Event), to_datetime(event.at))
