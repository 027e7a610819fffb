"""Requests and responses, independent of frameworks, and the bodies that OpenAPI shows."""

import datetime as dt
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

T = TypeVar("T")

JSON = "application/json"

CallBlocking = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Calls a function that may block its thread, and returns its result."""


@dataclass(kw_only=True)
class GatewayRequest:
    """A request as an adapter passes it on.

    - ``path``: follows the gateway's mount point ``mount`` (``/api``), percent-decoded.
    - ``headers``: in any case.
    - ``query_params``: maps names to a string or a list of strings, or is a framework's multi-dictionary (with
      ``getlist`` or ``getall``): a repeated parameter must be visible.
    - ``principal``: the user as the framework provides it.
    - ``raw_request``: the framework's own request.
    - ``call_blocking``: runs a synchronous hook in a thread of the framework; by default in any thread.
    - ``secrets``: the framework's own, the current one first. Unless the gateway has a secret, page tokens are signed
      with a key that is derived from them.
    - ``app_parameters``: names of query parameters that the app itself reads.
    """

    method: str
    path: str
    mount: str
    headers: Mapping[str, str]
    query_params: Mapping[str, str] | Mapping[str, Sequence[str]]
    body: bytes
    raw_request: Any
    principal: Any = None
    call_blocking: CallBlocking | None = None
    secrets: Sequence[str | bytes] = field(default=(), repr=False)
    app_parameters: Collection[str] = ()

    def __post_init__(self) -> None:
        self.headers = {name.lower(): value for name, value in self.headers.items()}
        self.query = {name: _values_of(self.query_params, name) for name in self.query_params}
        """All values of each query parameter."""

    def location(self, place: str, id: str) -> str:
        """The path of a workflow; ``place`` is the exposure's name."""
        return f"{self.mount}/{place}/{quote(id, safe='')}"


def _values_of(params: Any, name: str) -> Sequence[str]:
    """All values of a query parameter.

    ``params[name]`` of a multi-dictionary is only one of them: the first one of Werkzeug's, the last one of
    Starlette's and Django's.
    """
    for method in ("getlist", "getall"):
        if hasattr(params, method):
            return list(getattr(params, method)(name))
    value = params[name]
    return [value] if isinstance(value, str) else list(value)


@dataclass(kw_only=True)
class GatewayResponse:
    """Status, headers and a body; or ``stream``, which yields chunks of a body."""

    status_code: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    stream: Callable[[], AsyncGenerator[bytes, None]] | None = None

    def without_body(self) -> "GatewayResponse":
        """The response to HEAD: the headers of GET, with the length if it is known."""
        if self.stream is not None:
            return replace(self, stream=_no_chunks)
        return replace(self, headers={**self.headers, "Content-Length": str(len(self.body))}, body=b"")


async def _no_chunks() -> AsyncGenerator[bytes, None]:
    chunks: tuple[bytes, ...] = ()
    for chunk in chunks:
        yield chunk


def answer(
    body: BaseModel, status: HTTPStatus = HTTPStatus.OK, *, is_replay: bool = False, **headers: str
) -> GatewayResponse:
    """A response with a JSON body. Names of headers are given with underscores.

    It is never cached. ``is_replay`` marks the response of an earlier request with the same idempotency key.
    """
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    if is_replay:
        named["Idempotent-Replayed"] = "true"
    return GatewayResponse(
        status_code=status,
        headers={"Content-Type": JSON, "Cache-Control": "no-store", **named},
        body=to_json(body),
    )


def to_json(body: BaseModel) -> bytes:
    """A body as JSON, without empty fields, except in users' own values."""
    return body.model_dump_json(exclude_none=not isinstance(body, UserBody), fallback=str).encode()


_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
"""A JSON string. An unterminated one extends to the end of the document, so that the search is linear."""


def has_more_values(body: bytes, limit: int) -> bool:
    """Whether a JSON document has more than ``limit`` elements.

    Pydantic collects an error for each wrong element: a million of them cost a second and 400 MB.
    """
    return body.count(b",") >= limit and _STRING.sub(b"", body).count(b",") >= limit


# Bodies: a public contract

WorkflowStatus = Literal[
    "running", "completed", "failed", "cancelled", "terminated", "continued_as_new", "timed_out", "paused", "unknown"
]


class Body(BaseModel):
    """A body. ``to_json`` leaves out the fields without a value."""

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

    @classmethod
    def of(cls, location: str) -> "Links":
        """``location`` is the workflow's path."""
        return cls(self=location, result=f"{location}/result", events=f"{location}/events")


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
