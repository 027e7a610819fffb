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

from .errors import TemporalSettingsError

RESERVED_MEMO_PREFIX = "durably-"
"""Of fields in memos that this package sets itself: which request or app started a workflow or made a schedule."""


def check_memo(memo: Any, where: str) -> Mapping[str, Any]:
    """The memo that the app gives to what it starts. ``where`` is the code, such as ``expose(OrderWorkflow)``.

    Raises ``TemporalSettingsError`` for what is not a mapping of texts to values, and for a reserved key.
    """
    if not isinstance(memo, Mapping):
        raise TemporalSettingsError(
            f"memo= of {where} is {type(memo).__name__}: it must be a mapping of names to values"
        )
    for name in memo:
        if not isinstance(name, str):
            raise TemporalSettingsError(f"memo= of {where} has the key {name!r}: keys are texts")
        if name.startswith(RESERVED_MEMO_PREFIX):
            raise TemporalSettingsError(
                f'memo= of {where} has the key "{name}", and keys that begin with "{RESERVED_MEMO_PREFIX}" are '
                "reserved for Durably: give it another name"
            )
    return memo


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
