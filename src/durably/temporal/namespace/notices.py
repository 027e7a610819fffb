"""Notices: reasons why a workflow is stuck. Pure: no I/O, no clock.

They are found in the server's descriptions. The gateway's descriptions, Django's admin, the metrics and
``durably temporal check`` show the same notices.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from temporalio.api.enums.v1 import PendingActivityState, PendingWorkflowTaskState, VersioningBehavior
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionResponse

from durably.temporal.errors import scrub


class Reason(StrEnum):
    """Reasons why a workflow is stuck; the values are those of metrics and commands."""

    NO_POLLER = "no-poller"
    NO_CURRENT_VERSION = "no-current-version"
    NO_POLLER_OF_VERSION = "no-poller-of-version"
    WORKFLOW_TASK_FAILING = "workflow-task-failing"
    WORKFLOW_TASK_WAITING = "workflow-task-waiting"
    PAYLOAD_TOO_LARGE = "payload-too-large"
    ACTIVITY_RETRYING = "activity-retrying"
    WORKER_ENDED = "worker-ended"


@dataclass(frozen=True)
class Notice:
    """``text`` is a sentence for users, without secrets."""

    reason: Reason
    text: str


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Limits from which on a workflow is stuck.

    ``workflow_task_attempts`` and ``activity_attempts`` are numbers of the running attempt. ``activity_duration`` is
    the time since the first schedule of a retried activity.
    """

    workflow_task_attempts: int = 3
    workflow_task_wait: dt.timedelta = dt.timedelta(seconds=60)
    activity_attempts: int = 10
    activity_duration: dt.timedelta = dt.timedelta(hours=1)
    poller_silence: dt.timedelta = dt.timedelta(seconds=90)
    """A live worker polls at least once a minute; the server lists a dead one for five minutes."""


DEFAULT_THRESHOLDS = Thresholds()


@dataclass(frozen=True, kw_only=True)
class TaskQueueState:
    """A task queue as the server describes it.

    ``polls`` has the time of the last poll by worker version (``deployment.build_id``), or by ``None`` without worker
    versioning. ``current_version`` is the version of new workflows.
    """

    name: str
    is_for_activities: bool = False
    polls: Mapping[str | None, dt.datetime] = field(default_factory=dict)
    current_version: str | None = None


@dataclass(frozen=True, kw_only=True)
class HistoryTail:
    """The last events of a history.

    ``cause`` and ``message`` are those of a failed workflow task. ``cause`` is a ``WorkflowTaskFailedCause`` in lower
    case. ``scheduled`` is the first schedule of each activity by its id, ``failures`` the error of its last attempt.
    Texts are decrypted.
    """

    cause: str = ""
    message: str = ""
    scheduled: Mapping[str, dt.datetime] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)


MAXIMUM_MESSAGE = 300
"""Maximum characters of an error's text in a notice."""

_RETRYING = 2
"""An activity in this attempt has failed before."""


def needs_tail(described: DescribeWorkflowExecutionResponse, thresholds: Thresholds = DEFAULT_THRESHOLDS) -> bool:
    """Whether the reasons depend on the history."""
    return _is_task_failing(described, thresholds) or any(
        activity.attempt >= _RETRYING for activity in described.pending_activities
    )


def queues_of(described: DescribeWorkflowExecutionResponse) -> tuple[str, frozenset[str]]:
    """The workflow's task queue, and those of its waiting activities."""
    waiting = {
        activity.activity_options.task_queue.name
        for activity in described.pending_activities
        if activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
    }
    # Servers of older versions do not say where an activity waits.
    return described.workflow_execution_info.task_queue, frozenset(waiting - {""})


def find_notices(
    described: DescribeWorkflowExecutionResponse,
    queues: Sequence[TaskQueueState],
    tail: HistoryTail,
    now: dt.datetime,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
) -> list[Notice]:
    """Notices of an open workflow, as far as the server knows."""
    found = [poller_notice(queue, now, thresholds) for queue in queues]
    if not any(found):
        for_workflows = [queue for queue in queues if not queue.is_for_activities]
        found = [_version_notice(described, queue, now, thresholds) for queue in for_workflows]
    if not any(found):
        found = [_waiting_notice(described, now, thresholds)]
    found.append(_task_notice(described, tail, thresholds))
    found += [_activity_notice(activity, tail, now, thresholds) for activity in described.pending_activities]
    return [notice for notice in found if notice is not None]


def poller_notice(
    queue: TaskQueueState, now: dt.datetime, thresholds: Thresholds = DEFAULT_THRESHOLDS
) -> Notice | None:
    """A notice if no worker polls the queue."""
    what = " for activities" if queue.is_for_activities else ""
    if not queue.polls:
        text = f'no worker polls the task queue "{queue.name}"{what}: is one running, with that queue and namespace?'
        return Notice(Reason.NO_POLLER, text)
    silence = now - max(queue.polls.values())
    if silence <= thresholds.poller_silence:
        return None
    seconds = int(silence.total_seconds())
    text = f'no worker has polled the task queue "{queue.name}"{what} for {seconds} seconds: is one running?'
    return Notice(Reason.NO_POLLER, text)


def _version_notice(
    described: DescribeWorkflowExecutionResponse, queue: TaskQueueState, now: dt.datetime, thresholds: Thresholds
) -> Notice | None:
    """A notice if no poller of the queue has a version for this workflow.

    The server does not give this workflow's tasks to pollers of another version.
    """
    polling = {version for version, last in queue.polls.items() if now - last <= thresholds.poller_silence}
    versions = ", ".join(sorted(each for each in polling if each is not None))
    wanted = _pinned_version(described) or queue.current_version
    if wanted is None:
        if None in polling or not versions:
            return None
        return Notice(
            Reason.NO_CURRENT_VERSION,
            f'the workers of the task queue "{queue.name}" are versioned ({versions}), but no version is current: '
            "make one current with `durably temporal deployment set-current-version MODULE:TEMPORAL`",
        )
    if wanted in polling:
        return None
    others = f"; there are workers of {versions}" if versions else ""
    return Notice(
        Reason.NO_POLLER_OF_VERSION,
        f'the workflow needs a worker of version {wanted}, and none polls the task queue "{queue.name}"{others}',
    )


def _pinned_version(described: DescribeWorkflowExecutionResponse) -> str | None:
    info = described.workflow_execution_info.versioning_info
    override = info.versioning_override.pinned.version
    version = override if override.build_id else info.deployment_version
    is_pinned = bool(override.build_id) or info.behavior == VersioningBehavior.VERSIONING_BEHAVIOR_PINNED
    return f"{version.deployment_name}.{version.build_id}" if is_pinned and version.build_id else None


def _waiting_notice(
    described: DescribeWorkflowExecutionResponse, now: dt.datetime, thresholds: Thresholds
) -> Notice | None:
    task = described.pending_workflow_task
    if task.state != PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED:
        return None
    waited = now - task.scheduled_time.ToDatetime(dt.UTC)
    if waited <= thresholds.workflow_task_wait:
        return None
    return Notice(
        Reason.WORKFLOW_TASK_WAITING,
        f"a worker polls, but has not taken the workflow's task for {int(waited.total_seconds())} seconds: "
        "are the workers overloaded?",
    )


def _is_task_failing(described: DescribeWorkflowExecutionResponse, thresholds: Thresholds) -> bool:
    return described.pending_workflow_task.attempt >= thresholds.workflow_task_attempts


def _task_notice(
    described: DescribeWorkflowExecutionResponse, tail: HistoryTail, thresholds: Thresholds
) -> Notice | None:
    if not _is_task_failing(described, thresholds):
        return None
    attempt = described.pending_workflow_task.attempt
    said = f": {_shorten(tail.message)}" if tail.message else ""
    if tail.cause in ("payloads_too_large", "grpc_message_too_large"):
        return Notice(
            Reason.PAYLOAD_TOO_LARGE,
            f"the workflow's task fails, attempt {attempt}: an input or a result is larger than the server allows "
            "(2 MiB unless it is configured otherwise). Pass a reference to stored data instead",
        )
    cause = tail.cause.replace("_", " ") or "the history does not say why"
    return Notice(Reason.WORKFLOW_TASK_FAILING, f"the workflow's task fails, attempt {attempt}, {cause}{said}")


def _activity_notice(
    activity: PendingActivityInfo, tail: HistoryTail, now: dt.datetime, thresholds: Thresholds
) -> Notice | None:
    if activity.attempt < _RETRYING:
        return None
    scheduled = tail.scheduled.get(activity.activity_id)
    lasted = None if scheduled is None else now - scheduled
    is_long = lasted is not None and lasted >= thresholds.activity_duration
    if activity.attempt < thresholds.activity_attempts and not is_long:
        return None
    since = "" if lasted is None else f" for {_format_duration(lasted)}"
    of = f" of {activity.maximum_attempts}" if activity.maximum_attempts else ""
    message = tail.failures.get(activity.activity_id, "")
    said = f": {_shorten(message)}" if message else ""
    name = activity.activity_type.name
    text = f"the activity {name} has been retried{since}, attempt {activity.attempt}{of}{said}"
    return Notice(Reason.ACTIVITY_RETRYING, text)


def _shorten(message: str) -> str:
    text = " ".join(scrub(message).split())
    return text if len(text) <= MAXIMUM_MESSAGE else f"{text[:MAXIMUM_MESSAGE]}…"


def _format_duration(duration: dt.timedelta) -> str:
    """``45 seconds``, ``12 minutes``, ``3 hours``."""
    seconds = int(duration.total_seconds())
    for name, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {name}"
    return f"{seconds} seconds"
