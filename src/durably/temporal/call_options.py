"""What calls to the server take besides their subject, as keyword arguments; the names are ``temporalio``'s."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TypedDict

from temporalio.common import (
    Priority,
    QueryRejectCondition,
    RetryPolicy,
    TypedSearchAttributes,
    VersioningOverride,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)


class CallOptions(TypedDict, total=False):
    """What every call to the server takes; the timeout is that of one request."""

    rpc_metadata: Mapping[str, str | bytes]
    rpc_timeout: timedelta


class StartOptions(CallOptions, total=False):
    """How a workflow is started, as ``temporalio.client.Client.start_workflow`` describes it."""

    task_queue: str
    execution_timeout: timedelta
    run_timeout: timedelta
    task_timeout: timedelta
    id_reuse_policy: WorkflowIDReusePolicy
    id_conflict_policy: WorkflowIDConflictPolicy
    retry_policy: RetryPolicy
    cron_schedule: str
    memo: Mapping[str, Any]
    search_attributes: TypedSearchAttributes
    static_summary: str
    static_details: str
    start_delay: timedelta
    start_signal: str
    start_signal_args: Sequence[Any]
    request_eager_start: bool
    priority: Priority
    versioning_override: VersioningOverride


class QueryOptions(CallOptions, total=False):
    reject_condition: QueryRejectCondition


class UpdateOptions(CallOptions, total=False):
    id: str
