"""Reports of a run, by queries of its workflow.

A worker of the engine answers queries, also for ended runs.
"""

import datetime as dt
import itertools
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionDescription, WorkflowQueryFailedError
from temporalio.service import RPCError, RPCStatusCode

from durably.engine.core.calls import join_memos
from durably.engine.model.records import AttemptRow, StepRow
from durably.engine.model.run_report import RunRows, report_calls, run_wait
from durably.engine.model.runs import (
    FromStep,
    Run,
    RunCall,
    RunStatus,
    to_datetime,
    to_milliseconds,
    to_optional_datetime,
)
from durably.engine.temporal.ids import CALL_ID_PREFIX, run_workflow_id
from durably.engine.temporal.index import RunLists, RunQuery, memo_of, status_of, stored_event
from durably.engine.temporal.messages import CopiedMemos, MemoRecord, RunInput
from durably.engine.temporal.records import Records
from durably.engine.temporal.runs.record import RecordPage, StepsPage
from durably.protocol.engine_errors import RunUnavailableError, StepNotFoundError
from durably.protocol.events import Event, InternalEvent
from durably.protocol.opcodes import hash_step_id

_QUERY_TIMEOUT = dt.timedelta(seconds=10)
_SUMMARY_TIMEOUT = dt.timedelta(seconds=3)
_MOST_CHILDREN = 200
_MOST_NAMED = 20
_NO_WORKERS = (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED, RPCStatusCode.FAILED_PRECONDITION)


class RunReports:
    def __init__(self, client: Client, records: Records, lists: RunLists) -> None:
        self._client = client
        self._records = records
        self._lists = lists

    async def find(self, run_id: str) -> Run | None:
        """A run, with its current waits if a worker answers."""
        described = await self._lists.describe(run_id)
        if described is None:
            return await self.find_start(run_id)
        run = await self._lists.view(described)
        if run.status.has_ended:
            return run
        try:
            record: RecordPage = await self._query(
                run_id, "record", 0, result_type=RecordPage, timeout=_SUMMARY_TIMEOUT
            )
        except RunUnavailableError:
            return run
        return _live_run(run, record, _calls_under_way(described))

    async def find_start(self, event_id: str) -> Run | None:
        """The run that an invocation has started or will start. See ``Engine.get_run``."""
        runs = await self._lists.event_runs(event_id)
        if runs:
            return runs[0]
        event = await self._lists.sent_event(event_id)
        if event is None or event.name != InternalEvent.FUNCTION_INVOKED:
            return None
        invoked = msgspec.json.decode(event.body, type=Event).data["_inngest"]
        function = await self._records.find_function(invoked["fn_id"])
        if function is None or not (function.config.debounce or function.config.batch_events):
            return None
        return Run(
            id=event_id,
            function_id=function.config.id,
            app_id=function.app_id,
            status=RunStatus.SCHEDULED,
            event_ids=[event_id],
            event_id=event_id,
            event_name=event.name,
            created_at=to_datetime(event.at),
        )

    async def calls(self, run_id: str) -> list[RunCall]:
        described = await self._lists.describe(run_id)
        if described is None:
            return []
        if status_of(described).has_ended:
            return []
        record, _ = await self._read_record(run_id)
        assert record.state is not None
        return report_calls(run_id, record.state, _calls_under_way(described))

    async def rows(self, run_id: str, *, has_context: bool, after: int = 0) -> RunRows | None:
        """The rows of a run, without the first ``after`` finished steps.

        If it ``has_context``, with its events, parent and children.

        Without a worker, rows with a context have only the server's data, and are marked so; others raise
        ``RunUnavailableError``.
        """
        described = await self._lists.describe(run_id)
        if described is None:
            return None
        run = await self._lists.view(described)
        try:
            rows = await self._read(described, run, after)
        except RunUnavailableError as error:
            if not has_context:
                raise
            rows = RunRows(run=run, calls=_calls_under_way(described), unavailable=error.message)
        if not has_context:
            return rows
        children, has_more = await self._children(run_id)
        function = await self._records.find_function(rows.run.function_id)
        given = await self._lists.input(run_id)
        return msgspec.structs.replace(
            rows,
            function_name=(function.config.name if function is not None else None) or rows.run.function_id,
            app_version=(await memo_of(described)).app_version,
            events=[] if given is None else [stored_event(event) for event in given.events],
            parent=await self._parent(described),
            children=children,
            has_more_children=has_more,
        )

    async def batch(self, run_id: str) -> msgspec.Raw | None:
        """The run's events in the protocol's form."""
        given = await self._lists.input(run_id)
        if given is None:
            return None
        return msgspec.Raw(b"[" + b",".join(bytes(event.body) for event in given.events) + b"]")

    async def memos(self, run_id: str) -> msgspec.Raw | None:
        """The run's memos by hashed step id in the protocol's form."""
        given = await self._lists.input(run_id)
        if given is None:
            return None
        memos: list[tuple[str, bytes]] = []
        async for page in self.steps_pages(run_id):
            memos += [(row.step_id, bytes(memo)) for row, memo in zip(page.steps, page.memos, strict=True)]
        step_input = None if given.copied is None else given.copied.step_input
        if step_input is not None and all(step_id != step_input.step_id for step_id, _ in memos):
            memos.append((step_input.step_id, bytes(step_input.memo)))
        return msgspec.Raw(join_memos(memos))

    async def steps_pages(self, run_id: str, after: int = 0) -> AsyncIterator[StepsPage]:
        """The finished steps of a run, with their memos. Raises ``RunUnavailableError``."""
        while True:
            page: StepsPage = await self._query(run_id, "steps", after, result_type=StepsPage)
            yield page
            after += len(page.steps)
            if after >= page.total or not page.steps:
                return

    async def copied_memos(self, given: RunInput, from_step: FromStep) -> CopiedMemos:
        """The memos before a step's memo. Raises ``StepNotFoundError``."""
        accepted = (from_step.step_id, hash_step_id(from_step.step_id))
        names: list[str] = []
        size = 0
        async for page in self.steps_pages(given.run_id):
            for step, memo in zip(page.steps, page.memos, strict=True):
                if step.name == from_step.step_id or step.step_id in accepted:
                    arguments = from_step.input
                    step_input = None
                    if arguments is not None:
                        step_input = MemoRecord(step.step_id, msgspec.Raw(msgspec.json.encode({"input": arguments})))
                    return CopiedMemos(run_id=given.run_id, memos=len(names), size=size, step_input=step_input)
                names.append(step.name)
                size += len(memo)
        named = ", ".join(map(repr, names[:_MOST_NAMED])) + (", …" if len(names) > _MOST_NAMED else "")
        known = f"it has {named}" if names else "no step has finished; rerun it from the start"
        raise StepNotFoundError(f"run {given.run_id} has no finished step {from_step.step_id!r}: {known}")

    async def _read(self, described: WorkflowExecution, run: Run, after: int) -> RunRows:
        record, failed = await self._read_record(run.id)
        steps: list[tuple[StepRow, bytes]] = []
        async for page in self.steps_pages(run.id, after):
            steps += [(row, bytes(memo)) for row, memo in zip(page.steps, page.memos, strict=True)]
        calls = _calls_under_way(described)
        if not run.status.has_ended:
            run = _live_run(run, record, calls)
        elif record.started_at is not None:
            run = msgspec.structs.replace(run, started_at=to_datetime(record.started_at))
        return RunRows(
            run=run,
            last_called_at=record.last_called_at,
            finished=steps,
            failed=failed,
            unfinished=record.unfinished,
            state=None if run.status.has_ended else record.state,
            waits=record.waits,
            calls=calls,
        )

    async def _read_record(self, run_id: str) -> tuple[RecordPage, list[AttemptRow]]:
        """The record, and all failed attempts."""
        first: RecordPage = await self._query(run_id, "record", 0, result_type=RecordPage)
        failed = list(first.failed)
        while len(failed) < first.total:
            page: RecordPage = await self._query(run_id, "record", len(failed), result_type=RecordPage)
            failed += page.failed
        return first, failed

    async def _query(self, run_id: str, name: str, *arguments: Any, result_type: Any, timeout: Any = None) -> Any:
        """Query a run's workflow. Raises ``RunUnavailableError``."""
        handle = self._client.get_workflow_handle(run_workflow_id(run_id))
        try:
            return await handle.query(
                name, args=arguments, result_type=result_type, rpc_timeout=timeout or _QUERY_TIMEOUT
            )
        except RPCError as error:
            if error.status not in _NO_WORKERS:
                raise
            reason = error.message
        except WorkflowQueryFailedError as error:
            reason = str(error)
        raise RunUnavailableError(
            f"no worker of the engine answers for run {run_id} ({reason}): to read its steps, start a process with the "
            "app (the app itself, or `durably worker`)"
        )

    async def _children(self, run_id: str) -> tuple[list[Run], bool]:
        """The runs that a run started, the earliest first, and whether there are more."""
        started = await self._lists.read(RunQuery(parent=run_id))
        links = [await self._lists.link(each) for each in itertools.islice(reversed(started), _MOST_CHILDREN)]
        return links, len(started) > _MOST_CHILDREN

    async def _parent(self, described: WorkflowExecution) -> Run | None:
        memo = await memo_of(described)
        parent_id = memo.rerun_of or memo.parent
        parent = None if parent_id is None else await self._lists.describe(parent_id)
        if parent is None:
            return None
        link = await self._lists.link(described)
        of_parent = await self._lists.link(parent, has_relation=False)
        return msgspec.structs.replace(of_parent, relation=link.relation, step=link.step)


def _live_run(run: Run, record: RecordPage, calls: Mapping[int, int]) -> Run:
    """A run that has not ended, with what it waits for. ``calls`` are those of ``_calls_under_way``."""
    state = record.state
    assert state is not None
    due = sorted((wait.due is None, wait.due or 0, step_id) for step_id, wait in record.waits.items())
    first = record.waits[due[0][2]] if due else None
    started_at = record.started_at or min(calls.values(), default=None)
    return msgspec.structs.replace(
        run,
        status=RunStatus.SCHEDULED if started_at is None else RunStatus.RUNNING,
        started_at=to_optional_datetime(started_at),
        attempt=max((call.attempt for call in state.calls), default=0),
        waiting=run_wait(state) if first is None else run_wait(state, due[0][2], first.due, first.topic),
    )


def _calls_under_way(described: WorkflowExecution) -> dict[int, int]:
    """Start times of current calls in milliseconds, by generation."""
    if not isinstance(described, WorkflowExecutionDescription):
        return {}
    found = {}
    for each in described.raw_description.pending_activities:
        is_started = each.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
        if is_started and each.activity_id.startswith(CALL_ID_PREFIX):
            started_at = each.last_started_time.ToDatetime(dt.UTC)
            found[int(each.activity_id.removeprefix(CALL_ID_PREFIX))] = to_milliseconds(started_at)
    return found
