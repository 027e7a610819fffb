"""The Temporal client for synchronous code: views, scripts, shells.

Each method calls the method of the same name of ``temporalio``'s client, on the background event loop: one loop and one
connection for all threads. ``SyncClient.run`` calls any other method.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack, overload

from temporalio.client import (
    Client,
    WithStartWorkflowOperation,
    WorkflowExecution,
    WorkflowExecutionCount,
    WorkflowExecutionDescription,
    WorkflowHandle,
    WorkflowHistory,
    WorkflowUpdateHandle,
    WorkflowUpdateStage,
)
from temporalio.types import (
    MethodAsyncNoParam,
    MethodAsyncSingleParam,
    MethodSyncOrAsyncNoParam,
    MethodSyncOrAsyncSingleParam,
)
from temporalio.workflow import UpdateMethodMultiParam

from durably.io.background_loop import get_background_loop, running_loop
from durably.temporal.declarations import CallOptions, QueryOptions, StartOptions, UpdateOptions, fill_arguments
from durably.temporal.errors import TemporalSettingsError

T = TypeVar("T")
W = TypeVar("W")
A = TypeVar("A")
R = TypeVar("R")
P = ParamSpec("P")


class Runner:
    """Runs coroutines of the client. Raises ``RuntimeError`` on an event loop."""

    def __init__(self, client: Callable[[], Awaitable[Client]]) -> None:
        self._client = client

    def run(self, call: Callable[[Client], Awaitable[T]]) -> T:
        if running_loop() is not None:
            raise RuntimeError(
                "temporal.sync would block this event loop: in async code use the client itself, "
                "client = await temporal.client()"
            )
        return get_background_loop().run(self._call(call))

    async def _call(self, call: Callable[[Client], Awaitable[T]]) -> T:
        return await call(await self._client())

    def iterate(self, make: Callable[[Client], AsyncIterator[T]]) -> Iterator[T]:
        iterator: AsyncIterator[T] | None = None

        async def take(client: Client) -> tuple[bool, T | None]:
            nonlocal iterator
            iterator = make(client) if iterator is None else iterator
            try:
                return True, await anext(iterator)
            except StopAsyncIteration:
                return False, None

        while True:
            found, item = self.run(take)
            if not found:
                return
            yield item  # type: ignore[misc]


class SyncClient:
    """``temporal.sync``: starts workflows and returns handles to them.

    Raises the exceptions of ``temporalio``, and ``TemporalUnreachableError`` if the first connection fails.
    """

    def __init__(
        self, client: Callable[[], Awaitable[Client]], task_queue: Callable[[], str | None], variable: str
    ) -> None:
        """``variable`` is the environment variable of the task queue, for messages."""
        self._runner = Runner(client)
        self._task_queue = task_queue
        self._variable = variable

    def run(self, call: Callable[[Client], Awaitable[T]]) -> T:
        """Call any method: ``sync.run(lambda client: client.count_workflows("…"))``."""
        return self._runner.run(call)

    @property
    def client(self) -> Client:
        """The connected client itself, for asynchronous code."""
        return self._runner.run(_itself)

    @overload
    def start_workflow(
        self, workflow: MethodAsyncNoParam[W, R], *, id: str, **options: Unpack[StartOptions]
    ) -> "SyncWorkflowHandle[W, R]": ...
    @overload
    def start_workflow(
        self, workflow: MethodAsyncSingleParam[W, A, R], arg: A, *, id: str, **options: Unpack[StartOptions]
    ) -> "SyncWorkflowHandle[W, R]": ...
    @overload
    def start_workflow(
        self,
        workflow: Callable[Concatenate[W, P], Awaitable[R]],
        *,
        args: Sequence[Any],
        id: str,
        **options: Unpack[StartOptions],
    ) -> "SyncWorkflowHandle[W, R]": ...
    @overload
    def start_workflow(
        self, workflow: str, *arg: Any, id: str, args: Sequence[Any] = (), **options: Unpack[StartOptions]
    ) -> "SyncWorkflowHandle[Any, Any]": ...
    def start_workflow(self, workflow: Any, *arg: Any, id: str, **options: Any) -> "SyncWorkflowHandle[Any, Any]":
        """Start a workflow. Returns when the server has stored it.

        ``task_queue`` is that of the connection by default. Raises ``WorkflowAlreadyStartedError``, ``RPCError``.
        """
        arg, options = fill_arguments(workflow, arg, self.with_task_queue(options))
        return self._handle(self.run(lambda client: client.start_workflow(workflow, *arg, id=id, **options)))

    @overload
    def execute_workflow(
        self, workflow: MethodAsyncNoParam[W, R], *, id: str, **options: Unpack[StartOptions]
    ) -> R: ...
    @overload
    def execute_workflow(
        self, workflow: MethodAsyncSingleParam[W, A, R], arg: A, *, id: str, **options: Unpack[StartOptions]
    ) -> R: ...
    @overload
    def execute_workflow(
        self,
        workflow: Callable[Concatenate[W, P], Awaitable[R]],
        *,
        args: Sequence[Any],
        id: str,
        **options: Unpack[StartOptions],
    ) -> R: ...
    @overload
    def execute_workflow(
        self, workflow: str, *arg: Any, id: str, args: Sequence[Any] = (), **options: Unpack[StartOptions]
    ) -> Any: ...
    def execute_workflow(self, workflow: Any, *arg: Any, id: str, **options: Any) -> Any:
        """``start_workflow(…).result()``: too slow for most views."""
        arg, options = fill_arguments(workflow, arg, self.with_task_queue(options))
        return self.run(lambda client: client.execute_workflow(workflow, *arg, id=id, **options))

    def get_workflow_handle(
        self, workflow_id: str, *, run_id: str | None = None, result_type: type | None = None
    ) -> "SyncWorkflowHandle[Any, Any]":
        """A handle to an existing workflow. It does not ask the server."""
        return self._handle(
            self.client.get_workflow_handle(workflow_id, run_id=run_id, result_type=result_type),
        )

    @overload
    def get_workflow_handle_for(
        self, workflow: MethodAsyncNoParam[W, R], workflow_id: str, *, run_id: str | None = None
    ) -> "SyncWorkflowHandle[W, R]": ...
    @overload
    def get_workflow_handle_for(
        self, workflow: MethodAsyncSingleParam[W, Any, R], workflow_id: str, *, run_id: str | None = None
    ) -> "SyncWorkflowHandle[W, R]": ...
    def get_workflow_handle_for(
        self, workflow: Any, workflow_id: str, *, run_id: str | None = None
    ) -> "SyncWorkflowHandle[Any, Any]":
        """A handle with the types of the result, signals, queries and updates."""
        return self._handle(self.client.get_workflow_handle_for(workflow, workflow_id, run_id=run_id))

    def list_workflows(self, query: str | None = None, **options: Any) -> Iterator[WorkflowExecution]:
        """Workflows that match a visibility query. Pages are fetched on demand."""
        return self._runner.iterate(lambda client: client.list_workflows(query, **options))

    def count_workflows(self, query: str | None = None, **options: Unpack[CallOptions]) -> WorkflowExecutionCount:
        return self.run(lambda client: client.count_workflows(query, **options))

    def execute_update_with_start_workflow(
        self, update: Any, *arg: Any, start: "StartOperation", **options: Any
    ) -> Any:
        """Start the workflow if it is not running, and wait for an update of it."""
        arg, options = fill_arguments(update, arg, options)

        async def execute(client: Client) -> Any:
            return await client.execute_update_with_start_workflow(
                update, *arg, start_workflow_operation=start.make(self.with_task_queue), **options
            )

        return self.run(execute)

    def with_task_queue(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """``options`` of a start, with the connection's task queue by default.

        Raises ``TemporalSettingsError`` if there is no task queue.
        """
        queue = options.get("task_queue") or self._task_queue()
        if queue is None:
            raise TemporalSettingsError(
                f"there is no task queue: give task_queue=, here or to Temporal(), or set {self._variable}"
            )
        return {**options, "task_queue": queue}

    def _handle(self, handle: WorkflowHandle[Any, Any]) -> "SyncWorkflowHandle[Any, Any]":
        return SyncWorkflowHandle(self._runner, handle)


class StartOperation:
    """The start in ``execute_update_with_start_workflow``.

    The SDK requires ``id_conflict_policy``.
    """

    def __init__(self, workflow: Any, *arg: Any, id: str, **options: Any) -> None:
        self._workflow, self._arg, self._id, self._options = workflow, arg, id, options

    def make(self, with_queue: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Any:
        arg, options = fill_arguments(self._workflow, self._arg, with_queue(self._options))
        return WithStartWorkflowOperation(self._workflow, *arg, id=self._id, **options)


class SyncWorkflowHandle(Generic[W, R]):
    """A synchronous handle to a workflow. ``handle`` is that of ``temporalio``."""

    def __init__(self, runner: Runner, handle: WorkflowHandle[W, R]) -> None:
        self._runner = runner
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

    def result(
        self, *, timeout: timedelta | None = None, follow_runs: bool = True, **options: Unpack[CallOptions]
    ) -> R:
        """Wait for the result. Raises ``TimeoutError``; the workflow continues."""

        async def wait(client: Client) -> R:
            async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
                return await self.handle.result(follow_runs=follow_runs, **options)

        return self._runner.run(wait)

    def describe(self, **options: Unpack[CallOptions]) -> WorkflowExecutionDescription:
        return self._run(self.handle.describe, **options)

    def cancel(self, *, reason: str = "", **options: Unpack[CallOptions]) -> None:
        self._run(self.handle.cancel, reason=reason, **options)

    def terminate(self, *args: Any, reason: str | None = None, **options: Unpack[CallOptions]) -> None:
        self._run(self.handle.terminate, *args, reason=reason, **options)

    def fetch_history(self, **options: Unpack[CallOptions]) -> WorkflowHistory:
        return self._run(self.handle.fetch_history, **options)

    @overload
    def query(self, query: MethodSyncOrAsyncNoParam[W, T], **options: Unpack[QueryOptions]) -> T: ...
    @overload
    def query(self, query: MethodSyncOrAsyncSingleParam[W, A, T], arg: A, **options: Unpack[QueryOptions]) -> T: ...
    @overload
    def query(
        self,
        query: Callable[Concatenate[W, P], Awaitable[T] | T],
        *,
        args: Sequence[Any],
        **options: Unpack[QueryOptions],
    ) -> T: ...
    @overload
    def query(
        self,
        query: str,
        *arg: Any,
        args: Sequence[Any] = (),
        result_type: type | None = None,
        **options: Unpack[QueryOptions],
    ) -> Any: ...
    def query(self, query: Any, *arg: Any, **options: Any) -> Any:
        """Query the workflow. A worker must be running."""
        return self._call(self.handle.query, query, arg, options)

    @overload
    def signal(self, signal: MethodSyncOrAsyncNoParam[W, None], **options: Unpack[CallOptions]) -> None: ...
    @overload
    def signal(
        self, signal: MethodSyncOrAsyncSingleParam[W, A, None], arg: A, **options: Unpack[CallOptions]
    ) -> None: ...
    @overload
    def signal(
        self,
        signal: Callable[Concatenate[W, P], Awaitable[None] | None],
        *,
        args: Sequence[Any],
        **options: Unpack[CallOptions],
    ) -> None: ...
    @overload
    def signal(self, signal: str, *arg: Any, args: Sequence[Any] = (), **options: Unpack[CallOptions]) -> None: ...
    def signal(self, signal: Any, *arg: Any, **options: Any) -> None:
        """Signal the workflow. Returns when the server has stored the signal."""
        self._call(self.handle.signal, signal, arg, options)

    @overload
    def execute_update(self, update: UpdateMethodMultiParam[[W], T], **options: Unpack[UpdateOptions]) -> T: ...
    @overload
    def execute_update(
        self, update: UpdateMethodMultiParam[[W, A], T], arg: A, **options: Unpack[UpdateOptions]
    ) -> T: ...
    @overload
    def execute_update(
        self, update: UpdateMethodMultiParam[..., T], *, args: Sequence[Any], **options: Unpack[UpdateOptions]
    ) -> T: ...
    @overload
    def execute_update(
        self,
        update: str,
        *arg: Any,
        args: Sequence[Any] = (),
        result_type: type | None = None,
        **options: Unpack[UpdateOptions],
    ) -> Any: ...
    def execute_update(self, update: Any, *arg: Any, **options: Any) -> Any:
        """Wait for the result of an update. Raises ``WorkflowUpdateFailedError``."""
        return self._call(self.handle.execute_update, update, arg, options)

    def start_update(
        self,
        update: Any,
        *arg: Any,
        wait_for_stage: WorkflowUpdateStage = WorkflowUpdateStage.ACCEPTED,
        **options: Any,
    ) -> "SyncUpdateHandle[Any]":
        """Update the workflow. Returns when the update has reached the stage."""
        options = {**options, "wait_for_stage": wait_for_stage}
        handle = self._call(self.handle.start_update, update, arg, options)
        return SyncUpdateHandle(self._runner, handle)

    def get_update_handle(self, id: str, *, result_type: type | None = None) -> "SyncUpdateHandle[Any]":
        return SyncUpdateHandle(self._runner, self.handle.get_update_handle(id, result_type=result_type))

    def for_run(self, run_id: str) -> Self:
        """A handle to one run of the workflow."""
        client = self._runner.run(_itself)
        return type(self)(self._runner, client.get_workflow_handle(self.id, run_id=run_id))

    def _call(
        self, method: Callable[..., Awaitable[T]], handler: Any, arg: tuple[Any, ...], options: Mapping[str, Any]
    ) -> T:
        arg, options = fill_arguments(handler, arg, options)
        return self._run(method, handler, *arg, **options)

    def _run(self, method: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        return self._runner.run(lambda client: method(*args, **options))


class SyncUpdateHandle(Generic[T]):
    """A synchronous handle to an update. ``handle`` is that of ``temporalio``."""

    def __init__(self, runner: Runner, handle: WorkflowUpdateHandle[T]) -> None:
        self._runner = runner
        self.handle = handle

    @property
    def id(self) -> str:
        return self.handle.id

    def result(self, **options: Unpack[CallOptions]) -> T:
        return self._runner.run(lambda client: self.handle.result(**options))


async def _itself(client: Client) -> Client:
    return client
