"""Reruns, and bulk operations: their start, their progress and their pages."""

import asyncio
import hashlib
import os
from typing import Any

import msgspec
from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution as WorkflowId
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client, WorkflowExecution
from temporalio.service import RPCError, RPCStatusCode

from durably.engine.core.expressions import Expression, compile_expression
from durably.engine.core.inputs import CancelRequested
from durably.engine.core.run_state import RunStatus
from durably.engine.model.events import ENTROPY_BYTES, make_id
from durably.engine.model.registry import CANCELLED_IN_BULK
from durably.engine.model.runs import (
    BulkOperation,
    FromStep,
    Selection,
    to_datetime,
    to_milliseconds,
    to_optional_datetime,
    to_optional_milliseconds,
)
from durably.engine.temporal.ids import WORKFLOWS_QUEUE, bulk_workflow_id, run_id_of, run_workflow_id
from durably.engine.temporal.messages import CopiedMemos, FunctionRecord, MemoRecord, RunInput
from durably.engine.temporal.routing.bulk_cancellations import BulkCancellations
from durably.engine.temporal.routing.router import Router
from durably.engine.temporal.workflow_requests import describe, ignoring_not_found
from durably.protocol.engine_errors import (
    CancellationNotFoundError,
    FunctionNotFoundError,
    FunctionPausedError,
    RunNotFoundError,
    SelectionInvalidError,
    StepNotFoundError,
)
from durably.protocol.opcodes import hash_step_id

from .bulk_workflow import BULK, BULK_PAGE, BulkInput, BulkPage, BulkRecord, BulkWorkflow
from .function_lists import FunctionLists
from .run_lists import RunFilter, RunLists
from .run_reports import RunReports
from .run_search import RunSearch
from .run_views import RunViews, memo_of, status_of

_MOST_NAMED = 20
_TOGETHER = 100
"""Runs of one page."""
MAX_PRESENT_BYTES = 400_000
"""Maximum size of a function's current cancellations. The record is in a memo, which each event reads."""


class Reruns:
    def __init__(self, router: Router, functions: FunctionLists, reports: RunReports, views: RunViews) -> None:
        self._router = router
        self._functions = functions
        self._reports = reports
        self._views = views

    async def start(self, run_id: str, now: int, seed: str, from_step: FromStep | None = None) -> str:
        """Run again. The same ``now`` and ``seed`` give the same run.

        Raises ``RunNotFoundError``, ``FunctionNotFoundError``, ``FunctionPausedError``, ``StepNotFoundError``, and
        ``RunUnavailableError`` if no worker reads the steps of the run.
        """
        given = await self._views.input(run_id)
        if given is None:
            raise RunNotFoundError(f"there is no run with the id {run_id!r}")
        record = await self._functions.get(given.function_id)
        if record.is_paused:
            raise FunctionPausedError(
                f"the function {given.function_id!r} is paused; resume it before you run anything again"
            )
        copied = None if from_step is None else await self._copied(given, from_step)
        # The invoking step has its result already.
        events = tuple(msgspec.structs.replace(event, invoker=None) for event in given.events)
        digest = hashlib.sha256(f"{seed}\n{run_id}".encode()).digest()[:ENTROPY_BYTES]
        run = msgspec.structs.replace(
            self._router.run_input(record, events),
            run_id=make_id(now, lambda _: digest),
            rerun_of=run_id,
            parent=None,
            parent_step=None,
            copied=copied,
        )
        return await self._router.buckets.start(run, record)

    async def _copied(self, given: RunInput, from_step: FromStep) -> CopiedMemos:
        """The memos before a step's memo. Raises ``StepNotFoundError``."""
        accepted = (from_step.step_id, hash_step_id(from_step.step_id))
        names: list[str] = []
        size = 0
        async for page in self._reports.steps_pages(given.run_id):
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


class Bulk:
    def __init__(
        self,
        client: Client,
        lists: RunLists,
        search: RunSearch,
        views: RunViews,
        functions: FunctionLists,
        reruns: Reruns,
        cancellations: BulkCancellations,
    ) -> None:
        self._client = client
        self._lists = lists
        self._search = search
        self._views = views
        self._functions = functions
        self._reruns = reruns
        self._cancellations = cancellations

    async def cancel(self, selection: Selection, now: int) -> BulkOperation:
        """Raises ``FunctionNotFoundError`` and ``SelectionInvalidError``."""
        _check_room(await self._functions.get(selection.function_id), now)
        return _view(await self._start(selection, (), now))

    async def replay(self, selection: Selection, statuses: tuple[RunStatus, ...], now: int) -> BulkOperation:
        """Raises ``FunctionNotFoundError`` and ``FunctionPausedError``."""
        record = await self._functions.get(selection.function_id)
        if record.is_paused:
            raise FunctionPausedError(
                f"the function {selection.function_id!r} is paused; resume it before you run anything again"
            )
        return _view(await self._start(selection, statuses, now))

    async def _start(self, selection: Selection, statuses: tuple[RunStatus, ...], now: int) -> BulkRecord:
        record = BulkRecord(
            id=make_id(now, os.urandom),
            function_id=selection.function_id,
            started_after=to_optional_milliseconds(selection.started_after),
            started_before=to_milliseconds(selection.started_before),
            expression=selection.expression,
            statuses=statuses,
            created_at=now,
        )
        await self._client.start_workflow(
            BulkWorkflow.run,
            BulkInput(record),
            id=bulk_workflow_id(record.id),
            task_queue=WORKFLOWS_QUEUE,
            memo={BULK: record},
            static_summary=f"{'replays' if statuses else 'cancels'} runs of {record.function_id}",
        )
        return record

    async def find(self, bulk_id: str, *, is_replay: bool) -> BulkOperation | None:
        record = await self._find(bulk_id)
        if record is None or record.is_stopped or record.is_replay is not is_replay:
            return None
        return _view(record)

    async def _find(self, bulk_id: str) -> BulkRecord | None:
        described = await describe(self._client, bulk_workflow_id(bulk_id))
        if described is None:
            return None
        record: BulkRecord = await described.memo_value(BULK, type_hint=BulkRecord)
        return record

    async def all(self, *, is_replay: bool) -> list[BulkOperation]:
        """All operations, newest first. The index lags."""
        ids = {each.id async for each in self._client.list_workflows("WorkflowType = 'durably.Bulk'")}
        prefix = bulk_workflow_id("")
        found = await asyncio.gather(
            *(self.find(each.removeprefix(prefix), is_replay=is_replay) for each in sorted(ids, reverse=True))
        )
        return [each for each in found if each is not None]

    async def stop(self, bulk_id: str) -> None:
        """Raises ``CancellationNotFoundError``."""
        if await self.find(bulk_id, is_replay=False) is None:
            raise CancellationNotFoundError(f"there is no bulk cancellation with the id {bulk_id!r}")
        workflow_id = bulk_workflow_id(bulk_id)
        try:
            await self._client.get_workflow_handle(workflow_id).signal("stop")
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            # It applies to no new runs any more. Only its record is left.
            await self._client.workflow_service.delete_workflow_execution(
                DeleteWorkflowExecutionRequest(
                    namespace=self._client.namespace, workflow_execution=WorkflowId(workflow_id=workflow_id)
                )
            )

    @activity.defn(name=BULK_PAGE)
    async def apply_page(self, work: BulkInput) -> BulkPage:
        """Apply an operation to the next runs. Repeating this changes nothing."""
        record = work.record
        began_at = 0 if record.is_replay else await self._cancellations.begin(record)
        condition = compile_expression(record.expression) if record.expression else None
        after = None if work.cursor is None else await self._views.describe(work.cursor)
        applied: list[str] = []
        seen = 0
        async for run in self._lists.walk(_filter_of(record), after):
            activity.heartbeat()
            seen += 1
            run_id = run_id_of(run.id)
            if await self._is_meant(record, run, condition, began_at) and await self._apply(record, run_id):
                applied.append(run_id)
            if seen == _TOGETHER:
                return BulkPage(applied, run_id)
        return BulkPage(applied)

    async def _is_meant(
        self, record: BulkRecord, run: WorkflowExecution, condition: Expression | None, began_at: int
    ) -> bool:
        if record.is_replay:
            if status_of(run) not in record.statuses:
                return False
        elif run.start_time >= to_datetime(record.started_before):
            sender = (await memo_of(run)).parent
            if await self._cancellations.ancestor_cancelled_at(record.function_id, sender) < began_at:
                return False
        return condition is None or await self._search.matches(run, condition, record.created_at)

    async def _apply(self, record: BulkRecord, run_id: str) -> bool:
        if record.is_replay:
            try:
                await self._reruns.start(run_id, record.created_at, record.id)
            except (RunNotFoundError, FunctionNotFoundError):
                return False
            return True
        with ignoring_not_found():
            await self._client.get_workflow_handle(run_workflow_id(run_id)).signal(
                "cancel", CancelRequested(CANCELLED_IN_BULK)
            )
            return True
        return False


def _view(record: BulkRecord) -> BulkOperation:
    fields: dict[str, Any] = {
        "id": record.id,
        "function_id": record.function_id,
        "started_after": to_optional_datetime(record.started_after),
        "started_before": to_datetime(record.started_before),
        "expression": record.expression,
        "statuses": record.statuses,
        "created_at": to_datetime(record.created_at),
        "ended_at": to_optional_datetime(record.ended_at),
        "affected": record.affected,
    }
    return BulkOperation(**fields)


def _filter_of(record: BulkRecord) -> RunFilter:
    """The filter for the runs of an operation.

    A cancellation also includes runs that other runs have started since.
    """
    until = to_datetime(record.started_before)
    return RunFilter(
        status=None if record.is_replay else RunStatus.RUNNING,
        function_id=record.function_id,
        started_after=to_optional_datetime(record.started_after),
        started_before=until if record.is_replay else None,
        only_children_from=None if record.is_replay else until,
    )


def _check_room(function: FunctionRecord, now: int) -> None:
    """Raises ``SelectionInvalidError``."""
    present = [each for each in function.cancellations if not each.is_over(now)]
    if len(msgspec.json.encode(present)) > MAX_PRESENT_BYTES:
        raise SelectionInvalidError(
            f"there is no room for another bulk cancellation of the function {function.config.id!r}: Temporal holds no "
            f"more than the {len(present)} that apply to its new runs, each for an hour or until its range ends. "
            "Wait until one is over, or select more runs with a single one"
        )
