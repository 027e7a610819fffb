"""The workflow that a request is about: described once, checked, and pinned to the run that was described.

What follows goes to that run, so that an id that is used again cannot put another workflow in between.
"""

import functools
from collections.abc import Awaitable, Callable
from datetime import timedelta
from http import HTTPStatus
from typing import Any, TypeVar

from temporalio.client import Client, WorkflowExecutionDescription, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal.statuses import is_open

from .exposure import Exposure
from .ownership import Access, no_such_workflow, owner_of
from .problems import Problem, logger, to_problem

T = TypeVar("T")

CLOSED = "workflow-closed"
"""The kind of the problem."""

_MAXIMUM_RUNS = 5
"""How many runs are tried, one after another, when each has continued as new just before it is asked."""


class RunClosedError(Exception):
    """A run can do no more what it was asked."""


class Target:
    """``asked_run`` is the run that the request names; the latest counts without one."""

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
        """The workflow's description, without a check of its owner. Later calls return the first answer or problem.

        Raises the problem 404 if the workflow does not exist or has another type.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._description is None:
            try:
                self._description = await self._ask_for_description()
            except Problem as problem:
                self._refusal = problem
                raise
        return self._description

    async def _ask_for_description(self) -> WorkflowExecutionDescription:
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
        """The description, if the principal may reach the workflow. Raises the problem 404 otherwise."""
        description = await self.describe()
        owner = owner_of(description, self._owner_attribute)
        if not self._access.reaches(owner):
            if owner is None:
                _warn_of_no_owner(description.workflow_type, self._owner_attribute)
            raise no_such_workflow()
        return description

    @property
    def run_id(self) -> str:
        """The run that was described and checked."""
        assert self._description is not None, "it is checked before it is used"
        return self._description.run_id

    async def ask_open_run(self, ask: Callable[[WorkflowHandle[Any, Any]], Awaitable[T]]) -> T:
        """Ask something that only a run that is open can do. ``ask`` may raise ``RunClosedError``.

        If the run has continued as new since it was described, the next run is described, checked and asked.
        Raises the problem 409 for a workflow that is closed.
        """
        for _ in range(_MAXIMUM_RUNS):
            try:
                return await ask(await self._handle())
            except (RPCError, RunClosedError) as error:
                if isinstance(error, RPCError) and not _says_closed(error):
                    raise
                if not await self._has_next_run():
                    raise closed() from error
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
def _warn_of_no_owner(workflow_type: str, attribute: str) -> None:
    """Once in a process: users get 404 for a workflow that is theirs in the eyes of the app."""
    logger.warning(
        "There are workflows of the type %s without an owner (search attribute %s), which staff alone reaches: start "
        "them with search_attributes=owned_by(…) of durably.temporal",
        *(workflow_type, attribute),
    )


def is_closed(description: WorkflowExecutionDescription) -> bool:
    return description.status is not None and not is_open(description.status)


def _says_closed(error: RPCError) -> bool:
    """The server says of a workflow that is closed that it is not found, though it can be described."""
    return error.status is RPCStatusCode.NOT_FOUND and "completed" in error.message


def closed() -> Problem:
    return Problem(HTTPStatus.CONFLICT, CLOSED, "the workflow is over")
