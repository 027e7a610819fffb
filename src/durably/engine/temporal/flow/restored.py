"""Queues of calls that somebody terminated: they continue with what they held.

A new queue would not know which calls are under way, and would make more of them than the limit.
"""

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryReverseRequest,
    ResetWorkflowExecutionRequest,
)
from temporalio.client import Client, WorkflowExecutionStatus

from durably.engine.temporal.long_lived import ignoring_not_found
from durably.protocol.text import get_logger

_PAGE = 100

_logger = get_logger("durably.engine")


async def restore_terminated(client: Client, workflow_id: str) -> None:
    """Reset a workflow to its last task, if it was terminated.

    The server applies the signals after that task again.
    """
    with ignoring_not_found():
        described = await client.get_workflow_handle(workflow_id).describe()
        if described.status is not WorkflowExecutionStatus.TERMINATED:
            return
        execution = WorkflowExecution(workflow_id=workflow_id, run_id=described.run_id)
        last_task = await _find_last_task(client, execution)
        if last_task is None:
            return
        _logger.warning("the workflow %r was terminated on Temporal, and continues with what it held", workflow_id)
        await client.workflow_service.reset_workflow_execution(
            ResetWorkflowExecutionRequest(
                namespace=client.namespace,
                workflow_execution=execution,
                reason="its runs wait for it",
                workflow_task_finish_event_id=last_task,
                request_id=f"restore-{described.run_id}",  # The server executes requests of several processes once.
            )
        )


async def _find_last_task(client: Client, execution: WorkflowExecution) -> int | None:
    token = b""
    while True:
        page = await client.workflow_service.get_workflow_execution_history_reverse(
            GetWorkflowExecutionHistoryReverseRequest(
                namespace=client.namespace, execution=execution, maximum_page_size=_PAGE, next_page_token=token
            )
        )
        for event in page.history.events:
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
                return event.event_id
        token = page.next_page_token
        if not token:
            return None
