"""A validated request about workflows, for the functions of endpoints."""

import functools
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from typing import Any, TypeVar

from temporalio.client import Client, WorkflowExecution, WorkflowExecutionDescription, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal.errors import TemporalSettingsError
from durably.temporal.namespace import is_open

from .authorization import Access, Action, Facts, no_such_workflow, owner_of, principal_key
from .endpoints import Endpoint
from .exposure import Exposure, Operation
from .idempotency import KeyedRequest, RunHistory, shown_memo
from .inputs import Handler
from .messages import GatewayRequest
from .problems import Problem, logger, to_problem
from .services import Limits, Pages, Services

T = TypeVar("T")

CLOSED = "workflow-closed"
"""The kind of the problem."""

_MAXIMUM_RUNS = 5
"""Maximum number of runs to try, if each continues as new before it gets the request."""


class RunClosedError(Exception):
    """A run is closed and cannot handle the request."""


@dataclass(eq=False)
class Call:
    """A validated request.

    A workflow in the URL is described once, checked, and pinned to that run: a later workflow with the same id is never
    reached.

    - ``params``: the query parameters.
    - ``value``: the validated input.
    - ``workflow_id``: the id in the URL or of the workflow to be started; empty for lists.
    - ``start_values``: further arguments of a start, which the exposure's functions make.
    - ``client``: set when the request is authorized and the process is connected.
    """

    services: Services
    request: GatewayRequest
    endpoint: Endpoint
    ids: Mapping[str, str]
    access: Access
    params: Mapping[str, Any]
    value: Any
    keyed: KeyedRequest | None
    workflow_id: str = field(init=False)
    start_values: Mapping[str, Any] = field(init=False)
    client: Client = field(init=False)
    _description: WorkflowExecutionDescription | None = field(default=None, init=False)
    _refusal: Problem | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.workflow_id = self.ids.get("workflow_id", "")

    @property
    def exposure(self) -> Exposure:
        return self.endpoint.exposure

    @property
    def handler(self) -> Handler:
        """The signal, query or update in the URL."""
        return self.endpoint.subject

    @property
    def principal_key(self) -> str:
        """Raises ``UnknownPrincipalError``."""
        return principal_key(self.request.principal, self.services.identify)

    @property
    def limits(self) -> Limits:
        return self.services.limits

    @property
    def rpc_timeout(self) -> timedelta:
        return self.services.limits.rpc_timeout

    @property
    def location(self) -> str:
        """The path of the workflow."""
        return self.request.location(self.exposure.name, self.workflow_id)

    @property
    def is_start(self) -> bool:
        return self.endpoint.operation in (Operation.START, Operation.SIGNAL_WITH_START)

    @property
    def start_input(self) -> Any:
        """The validated input of the workflow to be started."""
        return self.value.input if self.endpoint.operation is Operation.SIGNAL_WITH_START else self.value

    @property
    def task_queue(self) -> str:
        """Raises ``TemporalSettingsError``."""
        temporal = self.services.temporal
        found = self.exposure.task_queue or temporal.settings.task_queue
        if not found:
            raise TemporalSettingsError(
                f"{self.exposure.name} has no task queue: give task_queue= to expose() or to Temporal(), or set "
                f"{temporal.variable_prefix}TASK_QUEUE"
            )
        return found

    def action(self) -> Action:
        """The request as ``authorize`` gets it."""
        is_of_several = self.endpoint.operation is Operation.LIST and self.access.sees_all
        return Action(
            operation=self.endpoint.operation,
            exposure=self.exposure,
            workflow_id=self.workflow_id or None,
            name=None if self.endpoint.handler is None else self.endpoint.handler.name,
            input=self.value,
            principal=self.request.principal,
            request=self.request.raw_request,
            find_facts=self._find_facts,
            facts=None if self.endpoint.id_names else Facts(owner=None if is_of_several else self.access.owner),
        )

    async def _find_facts(self) -> Facts:
        try:
            description = await self.describe()
        except Problem as problem:
            if problem.status is not HTTPStatus.NOT_FOUND:
                raise
            return Facts()
        return Facts(owner_of(description, self.services.owner_attribute), await shown_memo(description), description)

    # The workflow in the URL

    async def describe(self) -> WorkflowExecutionDescription:
        """The description of the run in the request, or of the latest run. It is requested once.

        Raises the problem 404 for a workflow that does not exist, has another type, or that the principal cannot reach.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._description is None:
            client = await self.services.temporal.client()
            handle = client.get_workflow_handle(self.workflow_id, run_id=self.params.get("run_id"))
            try:
                self._description = self._check(await handle.describe(rpc_timeout=self.rpc_timeout))
            except (RPCError, Problem) as error:
                problem = to_problem(error)
                self._refusal = no_such_workflow() if problem.status is HTTPStatus.NOT_FOUND else problem
                raise self._refusal from error
        return self._description

    async def describe_run(self, run_id: str | None) -> WorkflowExecutionDescription:
        """Another run of the workflow; the latest for ``None``.

        Raises the problem 404 for a run of another type, and for one that the principal cannot reach.
        """
        handle = self.client.get_workflow_handle(self.workflow_id, run_id=run_id)
        return self._check(await handle.describe(rpc_timeout=self.rpc_timeout))

    def _check(self, description: WorkflowExecutionDescription) -> WorkflowExecutionDescription:
        if description.workflow_type != self.exposure.workflow_type:
            raise no_such_workflow()
        if not self.reaches(description):
            if owner_of(description, self.services.owner_attribute) is None:
                _warn_of_missing_owner(description.workflow_type, self.services.owner_attribute)
            raise no_such_workflow()
        return description

    def reaches(self, execution: WorkflowExecution) -> bool:
        """Whether the principal can reach a workflow of the server."""
        return self.access.reaches(owner_of(execution, self.services.owner_attribute))

    @property
    def run_id(self) -> str:
        """The run that was described."""
        assert self._description is not None, "the gateway describes it first"
        return self._description.run_id

    def handle(self, run_id: str | None = None) -> WorkflowHandle[Any, Any]:
        """A handle to the described run, or to another run of the workflow."""
        run_id = run_id or self.run_id
        return self.client.get_workflow_handle(self.workflow_id, run_id=run_id, result_type=self.exposure.run.result)

    def history(self, run_id: str | None = None) -> RunHistory:
        return RunHistory(self.client, self.workflow_id, run_id or self.run_id, self.rpc_timeout)

    async def ask_open_run(self, ask: Callable[[WorkflowHandle[Any, Any]], Awaitable[T]]) -> T:
        """Send a request to an open run. ``ask`` may raise ``RunClosedError``.

        If the run has continued as new since it was described, the next run is described, checked and used. Raises the
        problem 409 for a closed workflow.
        """
        for _ in range(_MAXIMUM_RUNS):
            try:
                return await ask(self.handle())
            except (RPCError, RunClosedError) as error:
                # The server reports a closed workflow as not found.
                if isinstance(error, RPCError) and not (
                    error.status is RPCStatusCode.NOT_FOUND and "completed" in error.message
                ):
                    raise
                closed = self.run_id
                if not self.params.get("run_id"):
                    self._description = None
                    await self.describe()
                if self.run_id == closed:
                    raise Problem(HTTPStatus.CONFLICT, CLOSED, "the workflow is closed") from error
        raise Problem(HTTPStatus.CONFLICT, "workflow-busy", "the workflow continues as new too quickly to be reached")

    # Waits, streams and pages

    def waiting(self) -> Any:
        """A context for a response that waits for a workflow."""
        return self.services.metrics.waiting(self.endpoint)

    def preferred_wait(self) -> float | None:
        """Seconds to wait for a result (``Prefer: wait``, RFC 7240), within the limit."""
        found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?([0-9]{1,9})", self.request.headers.get("prefer", ""))
        return None if found is None else min(float(found[1]), self.limits.max_wait)

    def pages(self, *more: str) -> Pages:
        """Page tokens for this namespace, principal, exposure, operation, and ``more``."""
        scope = (self.client.namespace, self.principal_key, self.exposure.name, self.endpoint.operation, *more)
        return self.services.page_tokens.of(scope, self.request.secrets)


def is_closed(description: WorkflowExecutionDescription) -> bool:
    return description.status is not None and not is_open(description.status)


@functools.cache
def _warn_of_missing_owner(workflow_type: str, attribute: str) -> None:
    """Warn once in a process. Users get 404 for workflows that the app has started."""
    logger.warning(
        "There are workflows of the type %s without an owner (search attribute %s), which only staff can reach: start "
        "them with search_attributes=owned_by(…) of durably.temporal",
        *(workflow_type, attribute),
    )
