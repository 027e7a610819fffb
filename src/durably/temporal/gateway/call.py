"""An authorized request about workflows, and the workflow that its URL names."""

import functools
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from typing import Any, TypeVar

from temporalio.client import Client, WorkflowExecution, WorkflowExecutionDescription, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal.namespace.inspection import is_open

from .authorization import Access, no_such_workflow, owner_of
from .exposure import Exposure, HandlerExposure, Operation
from .idempotency import KeyedRequest, RunHistory
from .messages import GatewayRequest
from .pages import Pages
from .problems import Problem, bad_request, logger, to_problem
from .start_options import StartOptions

T = TypeVar("T")

CLOSED = "workflow-closed"
"""The kind of the problem."""

_MAXIMUM_RUNS = 5
"""Maximum number of runs to try, if each continues as new before it gets the request."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a gateway.

    - ``rpc_timeout``: for each request to the server.
    - ``max_wait``: maximum wait for a result, in seconds.
    - ``max_body``: bytes of a request.
    - ``max_values``: elements of lists and objects in a request, at all levels.
    - ``stream_limit``: seconds for which an event stream is open.
    - ``keep_alive``: maximum silence of a stream, in seconds.
    - ``max_streams``: streams of a principal in each process.
    - ``max_batch``: workflows of a batch.
    """

    rpc_timeout: timedelta = timedelta(seconds=10)
    max_wait: float = 60.0
    max_body: int = 2 * 1024 * 1024
    max_values: int = 100_000
    stream_limit: float = 600.0
    keep_alive: float = 5.0
    max_streams: int = 100
    max_batch: int = 1000


class RunClosedError(Exception):
    """A run is closed and cannot handle the request."""


class Target:
    """The workflow in a URL: described once, checked, and pinned to that run.

    Requests go to this run: a later workflow with the same id is never reached. ``asked_run`` is the run that the
    request names, or ``None`` for the latest.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Client]],
        exposure: Exposure,
        workflow_id: str,
        asked_run: str | None,
        access: Access,
        owner_attribute: str,
        rpc_timeout: timedelta,
    ) -> None:
        self._connect, self._exposure = connect, exposure
        self._workflow_id, self._asked_run = workflow_id, asked_run
        self._access, self._owner_attribute = access, owner_attribute
        self._rpc_timeout = rpc_timeout
        self._description: WorkflowExecutionDescription | None = None
        self._refusal: Problem | None = None

    async def describe(self) -> WorkflowExecutionDescription:
        """The description, without a check of the owner. It is requested once.

        Raises the problem 404 if the workflow does not exist or has another type.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._description is None:
            try:
                self._description = await self._request_description()
            except Problem as problem:
                self._refusal = problem
                raise
        return self._description

    async def _request_description(self) -> WorkflowExecutionDescription:
        client = await self._connect()
        handle = client.get_workflow_handle(self._workflow_id, run_id=self._asked_run)
        try:
            description = await handle.describe(rpc_timeout=self._rpc_timeout)
        except RPCError as error:
            problem = to_problem(error)
            raise no_such_workflow() if problem.status is HTTPStatus.NOT_FOUND else problem from error
        if description.workflow_type != self._exposure.definition.name:
            raise no_such_workflow()
        return description

    async def check(self) -> WorkflowExecutionDescription:
        """The description. Raises 404 if the principal cannot reach the workflow."""
        description = await self.describe()
        owner = owner_of(description, self._owner_attribute)
        if not self._access.reaches(owner):
            if owner is None:
                _warn_of_missing_owner(description.workflow_type, self._owner_attribute)
            raise no_such_workflow()
        return description

    @property
    def run_id(self) -> str:
        """The run that was described and checked."""
        assert self._description is not None, "it is checked before it is used"
        return self._description.run_id

    async def ask_open_run(self, ask: Callable[[WorkflowHandle[Any, Any]], Awaitable[T]]) -> T:
        """Send a request to an open run. ``ask`` may raise ``RunClosedError``.

        If the run has continued as new since it was described, the next run is described, checked and used. Raises the
        problem 409 for a closed workflow.
        """
        for _ in range(_MAXIMUM_RUNS):
            try:
                return await ask(await self._handle())
            except (RPCError, RunClosedError) as error:
                if isinstance(error, RPCError) and not _says_closed(error):
                    raise
                if not await self._has_next_run():
                    raise _closed() from error
        raise Problem(HTTPStatus.CONFLICT, "workflow-busy", "the workflow continues as new too quickly to be reached")

    async def _handle(self) -> WorkflowHandle[Any, Any]:
        client = await self._connect()
        return client.get_workflow_handle(self._workflow_id, run_id=self.run_id, result_type=self._exposure.result)

    async def _has_next_run(self) -> bool:
        if self._asked_run is not None:
            return False
        before, self._description = self.run_id, None
        return (await self.check()).run_id != before


@functools.cache
def _warn_of_missing_owner(workflow_type: str, attribute: str) -> None:
    """Warn once in a process. Users get 404 for workflows that the app has started."""
    logger.warning(
        "There are workflows of the type %s without an owner (search attribute %s), which only staff can reach: start "
        "them with search_attributes=owned_by(…) of durably.temporal",
        *(workflow_type, attribute),
    )


def is_closed(description: WorkflowExecutionDescription) -> bool:
    return description.status is not None and not is_open(description.status)


def _says_closed(error: RPCError) -> bool:
    """Whether the server reports a closed workflow, which it does as not found."""
    return error.status is RPCStatusCode.NOT_FOUND and "completed" in error.message


def _closed() -> Problem:
    return Problem(HTTPStatus.CONFLICT, CLOSED, "the workflow is closed")


@dataclass(kw_only=True)
class Call:
    """An authorized request about workflows, for the functions of endpoints.

    - ``label``: the endpoint without ids, for logs.
    - ``value``: the validated input.
    - ``workflow_id``: the id in the URL or of the workflow to be started; ``location`` is its path.
    - ``ids``: the other ids in the URL.
    - ``waiting``: a context for a response that waits for a workflow.
    - ``take_stream``: counts an event stream until the returned function is called.
    - ``client``: set last, when the process is connected.
    """

    request: GatewayRequest
    operation: Operation
    exposure: Exposure
    found_handler: HandlerExposure | None
    ids: Mapping[str, str]
    label: str
    value: Any
    workflow_id: str
    location: str
    client: Client = field(init=False)
    task_queue: str
    limits: Limits
    rpc_timeout: timedelta
    access: Access
    owner_attribute: str
    target: Target | None
    keyed: KeyedRequest | None
    waiting: Callable[[], AbstractContextManager[None]]
    take_stream: Callable[[], Callable[[], None]]
    make_pages: Callable[..., Pages]
    start_options: StartOptions = field(default_factory=StartOptions)

    @property
    def handler(self) -> HandlerExposure:
        """The signal, query or update in the URL."""
        assert self.found_handler is not None, "only endpoints with a handler use it"
        return self.found_handler

    @property
    def existing(self) -> Target:
        """The workflow in the URL."""
        assert self.target is not None, "only endpoints with an id use it"
        return self.target

    def handle(self, run_id: str | None = None) -> WorkflowHandle[Any, Any]:
        """A handle to the checked run, or to another run of the workflow."""
        run_id = run_id or self.existing.run_id
        return self.client.get_workflow_handle(self.workflow_id, run_id=run_id, result_type=self.exposure.result)

    def history(self, run_id: str) -> RunHistory:
        return RunHistory(self.client, self.workflow_id, run_id, self.rpc_timeout)

    def reaches(self, execution: WorkflowExecution) -> bool:
        """Whether the principal can reach a workflow of the server."""
        return self.access.reaches(owner_of(execution, self.owner_attribute))

    def owner_for_staff(self, execution: WorkflowExecution) -> str | None:
        """The owner of a workflow, for a principal that sees workflows of several owners."""
        is_shown = self.exposure.ownership is not None and self.access.sees_all
        return owner_of(execution, self.owner_attribute) if is_shown else None

    async def describe(self) -> WorkflowExecutionDescription:
        """The description of the workflow, or of the run in the request.

        Raises the problem 404 for a workflow that the principal cannot reach.
        """
        return await self.existing.check()

    async def describe_run(self, run_id: str | None) -> WorkflowExecutionDescription:
        """Another run of the workflow; the latest for ``None``.

        Raises the problem 404 for a run of another type, and for one that the principal cannot reach.
        """
        handle = self.client.get_workflow_handle(self.workflow_id, run_id=run_id)
        description = await handle.describe(rpc_timeout=self.rpc_timeout)
        if description.workflow_type != self.exposure.definition.name or not self.reaches(description):
            raise no_such_workflow()
        return description

    def pages(self, *more: str) -> Pages:
        """Page tokens for this namespace, principal, exposure, operation, and ``more``."""
        return self.make_pages(self.client.namespace, self.exposure.name, self.operation, *more)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """A query parameter. Raises a problem."""
        text = self.request.query(name)
        if text is None or text == "":
            return default
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise bad_request(f"{name} is a whole number from {low} to {high}")
        return int(text)

    def preferred_wait(self) -> float | None:
        """Seconds to wait for a result (``Prefer: wait``, RFC 7240), within the limit."""
        found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?([0-9]{1,9})", self.request.headers.get("prefer", ""))
        return None if found is None else min(float(found[1]), self.limits.max_wait)
