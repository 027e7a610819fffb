"""Bodies of requests and responses: a public contract, shown by OpenAPI."""

import datetime as dt
from typing import Any, Generic, Literal, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

T = TypeVar("T")

WorkflowStatus = Literal[
    "running", "completed", "failed", "cancelled", "terminated", "continued_as_new", "timed_out", "paused", "unknown"
]

BatchKind = Literal["cancel", "terminate", "signal", "unknown"]
BatchState = Literal["running", "completed", "failed", "unknown"]


class Body(BaseModel):
    """A body. ``messages.to_json`` leaves out the fields without a value."""

    model_config = ConfigDict(extra="forbid")


class UserBody(Body):
    """A body whose ``result`` is a user's value, which may contain ``null``."""

    @model_serializer(mode="wrap")
    def _leave_out(self, serialize: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        # Without a return type, so that the documents show the model's own fields.
        return {name: value for name, value in serialize(self).items() if value is not None or name == "result"}


class FailureCause(Body):
    """A failure of a chain. The next one in the list is its cause."""

    type: str = Field(description="The type of the error.")
    message: str
    activity: str | None = Field(default=None, description="The type of the activity that failed.")
    workflow: str | None = Field(default=None, description="The type of the child workflow that failed.")
    retry_state: str | None = None
    timeout: str | None = Field(default=None, description="The timeout that was exceeded.")
    non_retryable: bool | None = None


class InputError(Body):
    location: list[str]
    message: str


class ProblemDocument(BaseModel):
    """An error, as RFC 9457 describes it."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[InputError] | None = None
    failure: list[FailureCause] | None = None
    workflow_id: str | None = None
    run_id: str | None = None
    workflow_status: WorkflowStatus | None = None


class Links(Body):
    """Paths of the workflow and its resources."""

    self: str
    result: str
    events: str


_ATTACHED = "True if the workflow was already running: the request started nothing."


class Started(Body):
    workflow_id: str
    run_id: str | None = None
    status: Literal["running", "paused"] = "running"
    attached: bool | None = Field(default=None, description=_ATTACHED)
    links: Links


class Completed(UserBody, Generic[T]):
    """A workflow's result."""

    workflow_id: str
    run_id: str | None = None
    status: Literal["completed"] = "completed"
    result: T
    attached: bool | None = Field(default=None, description=_ATTACHED)
    links: Links


class PendingActivity(Body):
    """An activity that is scheduled, runs, or waits for its next attempt."""

    id: str
    type: str
    state: str
    attempt: int
    maximum_attempts: int | None = None
    scheduled_time: dt.datetime | None = None
    last_started_time: dt.datetime | None = None
    last_heartbeat_time: dt.datetime | None = None
    next_attempt_time: dt.datetime | None = None
    last_failure: list[FailureCause] | None = None


class Summary(Body):
    """A workflow in a list. Only staff see ``owner``."""

    workflow_id: str
    run_id: str
    workflow: str
    status: WorkflowStatus
    task_queue: str
    start_time: dt.datetime
    close_time: dt.datetime | None = None
    links: Links
    owner: str | None = None


class Description(Summary):
    """The state of a workflow."""

    execution_time: dt.datetime | None = None
    history_length: int
    parent_id: str | None = None
    memo: dict[str, Any] = {}
    search_attributes: dict[str, Any] = {}
    pending_activities: list[PendingActivity] = []


class Page(Body):
    """A page of workflows. ``next_page`` is the ``page`` of the next request."""

    workflows: list[Summary]
    next_page: str | None = None


class QueryAnswer(UserBody, Generic[T]):
    result: T


class UpdateDone(UserBody, Generic[T]):
    """An update's result."""

    update_id: str
    status: Literal["completed"] = "completed"
    result: T


class UpdateAccepted(Body):
    """The update continues. Its result will be at ``links.result``."""

    update_id: str
    status: Literal["accepted"] = "accepted"
    links: Links


class Accepted(Body):
    """The server has stored the request. The workflow will handle it."""

    workflow_id: str
    run_id: str | None = None
    status: Literal["accepted"] = "accepted"
    links: Links


class Reason(Body):
    reason: str = Field(default="", max_length=1000, description="Stored in the workflow's history.")


class BatchRequest(Body):
    """The workflows of a batch, as a query. With ``dry_run`` they are only counted."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    query: str = Field(min_length=1, description="A visibility query of Temporal.")
    reason: str = Field(default="", max_length=1000, description="Stored with the batch job.")
    dry_run: bool = Field(default=False, strict=True)


class JobLinks(Body):
    self: str


class BatchDryRun(Body):
    """The number of workflows that a batch would act on, and the ids of some."""

    count: int
    workflows: list[str]


class BatchAccepted(Body):
    """The server has stored the job. ``count`` is the number of workflows in it."""

    job_id: str
    count: int
    status: Literal["accepted"] = "accepted"
    links: JobLinks


class BatchJob(Body):
    """The progress of a job. ``total`` is missing until workflows are counted."""

    job_id: str
    operation: BatchKind
    state: BatchState
    total: int | None = None
    completed: int
    failed: int = Field(description="Workflows on which the operation has failed.")
    start_time: dt.datetime | None = None
    close_time: dt.datetime | None = None
    links: JobLinks


class ResetRequest(Body):
    """The workflow task to reset to: the first, the last, or one by its event."""

    to: Literal["first_workflow_task", "last_workflow_task"] | None = None
    event_id: int | None = Field(default=None, ge=1, le=2**31, description="The event at the end of a workflow task.")
    reason: str = Field(default="", max_length=1000)


class HistoryEvent(Body):
    """An event of a workflow's history, without inputs, results and details."""

    id: int
    time: dt.datetime
    type: str
    name: str | None = Field(
        default=None, description="The name of the activity, signal, update, timer or child workflow."
    )
    begun_by: int | None = Field(default=None, description="The event that scheduled or started it.")
    attempt: int | None = None
    failure: list[FailureCause] | None = None


class Run(Body):
    """The first run of a stream, or the run that follows ``previous_run_id``."""

    run_id: str
    previous_run_id: str | None = None
    cause: Literal["continue_as_new", "retry", "cron", "reset"] | None = None


class Pending(Body):
    """The activities that a workflow waits for. Histories do not contain attempts."""

    pending_activities: list[PendingActivity]


class HistoryPage(Body):
    events: list[HistoryEvent]
    next_page: str | None = None


class RawHistoryPage(Body):
    """Events as ``temporal workflow show --output json`` prints them.

    The events of all pages together are the whole history.
    """

    events: list[dict[str, Any]]
    next_page: str | None = None


class ScheduleLinks(Body):
    self: str


class ScheduledAction(Body):
    """A workflow that a schedule has started."""

    scheduled_time: dt.datetime
    started_time: dt.datetime
    workflow_id: str
    run_id: str


class ScheduleState(Body):
    """A declared schedule, with the server's state if it has been synced."""

    schedule_id: str
    spec: str = Field(description="Its times, as the app's code declares them.")
    state: Literal["synced", "changed", "not_synced", "of_another_app"] = Field(
        description="Whether the server's schedule is as the app's code declares it. changed and not_synced: run "
        "`durably temporal sync-schedules`. of_another_app: another app has a schedule with this id."
    )
    paused: bool | None = None
    note: str | None = Field(default=None, description="The note of the last pause or resume.")
    next_times: list[dt.datetime] | None = Field(default=None, description="Its next times, if it is not paused.")
    recent_actions: list[ScheduledAction] | None = Field(default=None, description="At most ten, the latest first.")
    running_workflow_ids: list[str] | None = None
    started_count: int | None = None
    skipped_count: int | None = Field(
        default=None, description="Not started because an earlier workflow was still running."
    )
    missed_count: int | None = Field(default=None, description="Not started because the server was down for too long.")
    links: ScheduleLinks


class ScheduleList(Body):
    """All open schedules, in the order of their declaration."""

    schedules: list[ScheduleState]


class ScheduleNote(Body):
    note: str = Field(default="", max_length=1000, description="Shown with the schedule.")


Overlap = Literal["skip", "buffer_one", "buffer_all", "cancel_other", "terminate_other", "allow_all"]


class ScheduleTriggerRequest(Body):
    overlap: Overlap | None = Field(
        default=None,
        description="What happens if a workflow of the schedule is running. By default, the schedule's own policy.",
    )


_MAXIMUM_SPAN = dt.timedelta(days=366)
_EARLIEST = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class ScheduleBackfillRequest(Body):
    """The times after ``start_at`` and up to ``end_at``, at most 366 days."""

    start_at: AwareDatetime = Field(description="With an offset from UTC.")
    end_at: AwareDatetime = Field(description="With an offset from UTC.")
    overlap: Overlap = Field(default="buffer_all", description="buffer_all runs one workflow after another.")

    @model_validator(mode="after")
    def _check_span(self) -> "ScheduleBackfillRequest":
        if self.start_at < _EARLIEST:
            raise ValueError("start_at is before 1970")
        if self.end_at <= self.start_at:
            raise ValueError("end_at must be after start_at")
        if self.end_at - self.start_at > _MAXIMUM_SPAN:
            raise ValueError(f"end_at must be at most {_MAXIMUM_SPAN.days} days after start_at")
        return self


class ScheduleAccepted(Body):
    """The server has stored the request."""

    schedule_id: str
    status: Literal["accepted"] = "accepted"
    links: ScheduleLinks


class BackfillAccepted(ScheduleAccepted):
    times: int = Field(description="The number of the schedule's times in the span.")
