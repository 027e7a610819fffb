"""The bodies that the gateway answers with. They are its public contract: the OpenAPI document is made from them."""

import datetime as dt
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

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
    status: Literal["running"] = "running"
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
