"""Requests to workflows by their ids, which may have ended or never started."""

import asyncio
import contextlib
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from temporalio.client import Client, WithStartWorkflowOperation, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError, RPCStatusCode

from .ids import WORKFLOWS_QUEUE

ENDED_BY_HAND = (WorkflowExecutionStatus.TERMINATED, WorkflowExecutionStatus.CANCELED)
"""Ends that no workflow of the engine but a run has by itself."""


async def describe(client: Client, workflow_id: str) -> WorkflowExecutionDescription | None:
    """The workflow with an id, running or ended; ``None`` if there is none.

    Raises ``RPCError``.
    """
    with ignoring_not_found():
        return await client.get_workflow_handle(workflow_id).describe()
    return None


async def update_with_start(
    client: Client,
    update: str,
    argument: Any,
    *,
    workflow: Any,
    state: Sequence[Any] = (),
    id: str,
    summary: str,
    memo: Mapping[str, Any] | None = None,
    task_timeout: dt.timedelta | None = None,
    result_type: type | None = None,
) -> Any:
    """The result of an Update of the workflow with an id.

    ``workflow`` is its ``run`` method; it starts with ``state``, ``memo`` and ``task_timeout`` if it does not run.
    Raises ``WorkflowUpdateFailedError`` and ``RPCError``.
    """
    start: WithStartWorkflowOperation[Any, Any] = WithStartWorkflowOperation(
        workflow,
        args=state,
        id=id,
        task_queue=WORKFLOWS_QUEUE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        memo=memo,
        task_timeout=task_timeout,
        static_summary=summary,
    )
    try:
        return await client.execute_update_with_start_workflow(
            update, argument, start_workflow_operation=start, result_type=result_type
        )
    except BaseException:
        _read_error(start)
        raise


def _read_error(start: WithStartWorkflowOperation[Any, Any]) -> None:
    """Read the error of the start, which the Update has raised.

    Otherwise asyncio would log it with a traceback.
    """
    reading = asyncio.ensure_future(start.workflow_handle())
    reading.add_done_callback(lambda done: done.cancelled() or done.exception())


@contextlib.contextmanager
def ignoring_not_found() -> Iterator[None]:
    """Ignore that a workflow has ended, or never ran."""
    try:
        yield
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
