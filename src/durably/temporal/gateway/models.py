"""The bodies that the gateway answers with. They are its public contract: the OpenAPI document is made from them."""

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
    """Leaves out what is not known. A result is the user's own, and ``null`` may be one."""

    model_config = ConfigDict(extra="forbid")

    @model_serializer(mode="wrap")
    def _leave_out(self, serialize: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        # Without a return type, so that the documents show the model's own fields.
        return {name: value for name, value in serialize(self).items() if value is not None or name == "result"}


class FailureCause(Body):
    """One failure of a chain; the next one in the list is its cause."""

    type: str = Field(description="The error's type, as the code that raised it named it.")
    message: str
    activity: str | None = Field(default=None, description="The type of the activity that failed.")
    workflow: str | None = Field(default=None, description="The type of the child workflow that failed.")
    retry_state: str | None = None
    timeout: str | None = Field(default=None, description="Which timeout ran out.")
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
    """Where to go on, as paths."""

    self: str
    result: str
    events: str


_ATTACHED = "True if the workflow ran already, so that the request has started nothing."


class Started(Body):
    workflow_id: str
    run_id: str | None = None
    status: Literal["running", "paused"] = "running"
    attached: bool | None = Field(default=None, description=_ATTACHED)
    links: Links


class Completed(Body, Generic[T]):
    """A workflow's result."""

    workflow_id: str
    run_id: str | None = None
    status: Literal["completed"] = "completed"
    result: T
    attached: bool | None = Field(default=None, description=_ATTACHED)
    links: Links


class PendingActivity(Body):
    """An activity that is not done: scheduled, running, or waiting for its next attempt."""

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
    """A workflow in a list. ``owner`` is there for staff only."""

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
    """All that the server tells of a workflow. ``notices`` say what keeps it from going on."""

    execution_time: dt.datetime | None = None
    history_length: int
    parent_id: str | None = None
    memo: dict[str, Any] = {}
    search_attributes: dict[str, Any] = {}
    pending_activities: list[PendingActivity] = []
    notices: list[str] = []


class Page(Body):
    """A page of workflows; ``next_page`` is given as ``page`` to get the one after it."""

    workflows: list[Summary]
    next_page: str | None = None


class QueryAnswer(Body, Generic[T]):
    result: T


class UpdateDone(Body, Generic[T]):
    """An update's result."""

    update_id: str
    status: Literal["completed"] = "completed"
    result: T


class UpdateAccepted(Body):
    """The update goes on; ``links.result`` tells its result."""

    update_id: str
    status: Literal["accepted"] = "accepted"
    links: Links


class Accepted(Body):
    """The server has taken what was asked; the workflow gets to it."""

    workflow_id: str
    run_id: str | None = None
    status: Literal["accepted"] = "accepted"
    links: Links


class Reason(Body):
    reason: str = Field(default="", max_length=1000, description="Kept in the workflow's history.")


class BatchRequest(Body):
    """Which workflows a batch acts on. With ``dry_run`` it does nothing, and answers what it finds."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    query: str = Field(min_length=1, description="A visibility query of Temporal's.")
    reason: str = Field(default="", max_length=1000, description="Kept with the batch job.")
    dry_run: bool = Field(default=False, strict=True)


class JobLinks(Body):
    self: str


class BatchDryRun(Body):
    """What a batch finds now: how many workflows, and the ids of some."""

    count: int
    workflows: list[str]


class BatchAccepted(Body):
    """The server has taken the job. ``count`` is how many workflows the query found beforehand."""

    job_id: str
    count: int
    status: Literal["accepted"] = "accepted"
    links: JobLinks


class BatchJob(Body):
    """How far a job is. ``total`` is left out until the server has counted; ``failed`` counts workflows."""

    job_id: str
    operation: BatchKind
    state: BatchState
    total: int | None = None
    completed: int
    failed: int
    start_time: dt.datetime | None = None
    close_time: dt.datetime | None = None
    links: JobLinks


class ResetRequest(Body):
    """Where to go back to: the first or last workflow task, or the end of the workflow task with this event id."""

    to: Literal["first_workflow_task", "last_workflow_task"] | None = None
    event_id: int | None = Field(default=None, ge=1, le=2**31)
    reason: str = Field(default="", max_length=1000)


class HistoryEvent(Body):
    """What happened in a workflow, in brief: no inputs, results or details."""

    id: int
    time: dt.datetime
    type: str
    name: str | None = Field(default=None, description="The activity, signal, update, timer or child workflow.")
    begun_by: int | None = Field(default=None, description="The event that began what this one is about.")
    attempt: int | None = None
    failure: list[FailureCause] | None = None


class Run(Body):
    """A run begins: the first one that is told, or the one that follows ``previous_run_id``."""

    run_id: str
    previous_run_id: str | None = None
    cause: Literal["continue_as_new", "retry", "cron", "reset"] | None = None


class Pending(Body):
    """What a workflow waits for just now: attempts of activities stand in no history."""

    pending_activities: list[PendingActivity]


class HistoryPage(Body):
    events: list[HistoryEvent]
    next_page: str | None = None


class RawHistoryPage(Body):
    """What ``temporal workflow show --output json`` prints, and ``WorkflowHistory.from_json`` and replayers read. The
    whole history is the events of all its pages."""

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
    """A declared schedule. Without ``synced`` or ``changed`` the server's schedule is not told of."""

    schedule_id: str
    spec: str = Field(description="When it is due, as the app's code declares it.")
    state: Literal["synced", "changed", "not_synced", "of_another_app"] = Field(
        description="Whether the server's schedule is as the app's code declares it. changed and not_synced: run "
        "`durably temporal sync-schedules`. of_another_app: another app has a schedule with this id."
    )
    paused: bool | None = None
    note: str | None = Field(default=None, description="Given by the person who paused or resumed it last.")
    next_times: list[dt.datetime] | None = Field(default=None, description="When it is due, unless it is paused.")
    recent_actions: list[ScheduledAction] | None = Field(default=None, description="At most ten, the latest first.")
    running_workflow_ids: list[str] | None = None
    started_count: int | None = None
    skipped_count: int | None = Field(default=None, description="Not started, because an earlier workflow still ran.")
    missed_count: int | None = Field(default=None, description="Not started, because the server was away for too long.")
    links: ScheduleLinks


class ScheduleList(Body):
    """All open schedules, in the order of their declaration."""

    schedules: list[ScheduleState]


class ScheduleNote(Body):
    note: str = Field(default="", max_length=1000, description="Shown with the schedule.")


Overlap = Literal["skip", "buffer_one", "buffer_all", "cancel_other", "terminate_other", "allow_all"]


class ScheduleTriggerRequest(Body):
    overlap: Overlap | None = Field(
        default=None, description="If a workflow of the schedule runs already. The schedule's own policy unless given."
    )


_MAXIMUM_SPAN = dt.timedelta(days=366)
_EARLIEST = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class ScheduleBackfillRequest(Body):
    """The times after ``start_at``, up to ``end_at``, both with an offset from UTC; at most 366 days."""

    start_at: AwareDatetime
    end_at: AwareDatetime
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
    """The server has taken what was asked."""

    schedule_id: str
    status: Literal["accepted"] = "accepted"
    links: ScheduleLinks


class BackfillAccepted(ScheduleAccepted):
    times: int = Field(description="How many times of the schedule lie in the span.")
