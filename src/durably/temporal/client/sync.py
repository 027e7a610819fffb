"""Temporal's client for synchronous code.

Its methods are derived from those of ``temporalio``'s client, with their types and overloads. They run on the
background event loop. Methods that are missing here: ``sync.run(lambda client: …)``.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from temporalio.client import Client, WorkflowExecution, WorkflowHandle

from durably.io.background_loop import get_background_loop, running_loop

T = TypeVar("T")
W = TypeVar("W")
R = TypeVar("R")
P = ParamSpec("P")


def _method(method: Callable[Concatenate[Client, P], Awaitable[T]]) -> Callable[Concatenate["SyncClient", P], T]:
    @functools.wraps(method)
    def call(self: "SyncClient", /, *args: P.args, **options: P.kwargs) -> T:
        return self.run(lambda client: method(client, *args, **options))

    return call


def _start(
    method: Callable[Concatenate[Client, P], Awaitable[WorkflowHandle[W, R]]],
) -> Callable[Concatenate["SyncClient", P], "SyncWorkflowHandle[W, R]"]:
    start = _method(method)

    @functools.wraps(method)
    def call(self: "SyncClient", /, *args: P.args, **options: P.kwargs) -> "SyncWorkflowHandle[W, R]":
        return SyncWorkflowHandle(self, start(self, *args, **options))

    return call


def _get(
    method: Callable[Concatenate[Client, P], WorkflowHandle[W, R]],
) -> Callable[Concatenate["SyncClient", P], "SyncWorkflowHandle[W, R]"]:
    @functools.wraps(method)
    def call(self: "SyncClient", /, *args: P.args, **options: P.kwargs) -> "SyncWorkflowHandle[W, R]":
        return SyncWorkflowHandle(self, method(self.client, *args, **options))

    return call


def _handle_method(
    method: Callable[Concatenate[WorkflowHandle[W, R], P], Awaitable[T]],
) -> Callable[Concatenate["SyncWorkflowHandle[W, R]", P], T]:
    @functools.wraps(method)
    def call(self: "SyncWorkflowHandle[W, R]", /, *args: P.args, **options: P.kwargs) -> T:
        return self.client.run(lambda client: method(self.handle, *args, **options))

    return call


class SyncClient:
    """``temporal.sync``: starts workflows and returns handles to them.

    Raises the exceptions of ``temporalio``, ``TemporalUnreachableError`` if the first connection fails, and
    ``RuntimeError`` on an event loop.
    """

    def __init__(self, connect: Callable[[], Awaitable[Client]]) -> None:
        self._connect = connect

    def run(self, call: Callable[[Client], Awaitable[T]]) -> T:
        """Call any method: ``sync.run(lambda client: client.get_schedule_handle("nightly").trigger())``."""
        if running_loop() is not None:
            raise RuntimeError(
                "temporal.sync would block this event loop: in async code use the client itself, "
                "client = await temporal.client()"
            )

        async def run() -> T:
            return await call(await self._connect())

        return get_background_loop().run(run())

    @property
    def client(self) -> Client:
        """The connected client itself, for asynchronous code."""

        async def itself(client: Client) -> Client:
            return client

        return self.run(itself)

    start_workflow = _start(Client.start_workflow)
    execute_workflow = _method(Client.execute_workflow)
    count_workflows = _method(Client.count_workflows)
    get_workflow_handle = _get(Client.get_workflow_handle)
    get_workflow_handle_for = _get(Client.get_workflow_handle_for)

    def list_workflows(self, query: str | None = None, **options: Any) -> Iterator[WorkflowExecution]:
        """Workflows that match a visibility query. Pages are fetched on demand."""
        workflows = self.client.list_workflows(query, **options)

        async def take(client: Client) -> WorkflowExecution | None:
            return await anext(workflows, None)

        while (found := self.run(take)) is not None:
            yield found


class SyncWorkflowHandle(Generic[W, R]):
    """A synchronous handle to a workflow. ``handle`` is that of ``temporalio``."""

    def __init__(self, client: SyncClient, handle: WorkflowHandle[W, R]) -> None:
        self.client = client
        self.handle = handle

    @property
    def id(self) -> str:
        return self.handle.id

    @property
    def run_id(self) -> str | None:
        """The run of the handle; ``None`` for the latest."""
        return self.handle.run_id

    @property
    def result_run_id(self) -> str | None:
        """The run that was started. ``result`` waits for it and for the runs that follow."""
        return self.handle.result_run_id

    def result(self, *, timeout: timedelta | None = None, **options: Any) -> R:
        """Wait for the result. Raises ``TimeoutError``; the workflow continues."""

        async def wait(client: Client) -> R:
            async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
                return await self.handle.result(**options)

        return self.client.run(wait)

    cancel = _handle_method(WorkflowHandle.cancel)
    describe = _handle_method(WorkflowHandle.describe)
    execute_update = _handle_method(WorkflowHandle.execute_update)
    fetch_history = _handle_method(WorkflowHandle.fetch_history)
    query = _handle_method(WorkflowHandle.query)
    signal = _handle_method(WorkflowHandle.signal)
    terminate = _handle_method(WorkflowHandle.terminate)
