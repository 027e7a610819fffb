"""Django's database in workflows and activities.

The module also starts workflows when a transaction commits.

Database connections of an activity are treated as in a request: Django closes dead and old ones before and after it
(``CONN_MAX_AGE``), and connections of its own threads at its end. An activity is not in a transaction: its commits
stay, even if it is retried.

A workflow runs again from its history and must not query the database: a model in a workflow raises an error that names
the line.
"""

import functools
import sysconfig
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

import asgiref.sync
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import close_old_connections, connections, transaction
from temporalio import activity
from temporalio.types import MethodAsyncNoParam, MethodAsyncSingleParam
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    ExecuteWorkflowInput,
    HandleQueryInput,
    HandleSignalInput,
    HandleUpdateInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

from durably.errors import Error
from durably.execution.step import is_async
from durably.temporal.client.connection import Temporal
from durably.temporal.declarations import StartOptions, fill_arguments
from durably.web.django import in_event_loop

from .conf import get_temporal

_OF_OTHERS = (*(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")), __file__)
"""Directories of code that is not the project's."""


class ModelInWorkflowError(Error):
    """A workflow used the database. The message names the line and the remedy."""


class OrmInterceptor(Interceptor):
    """The interceptor for a worker whose activities use the ORM.

    Pass it in ``interceptors``. The project's own worker has it.
    """

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Activities(next)

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> type[WorkflowInboundInterceptor]:
        return _Workflows


class _Activities(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        if is_async(input.fn):
            # A thread for the sync code of each activity, so that their queries do not wait for each other.
            async with ThreadSensitiveContext():
                try:
                    return await super().execute_activity(input)
                finally:
                    await sync_to_async(connections.close_all)()
        if isinstance(input.executor, ThreadPoolExecutor):
            input.fn = _with_usable_connections(input.fn)
        return await super().execute_activity(input)


def _with_usable_connections(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any) -> Any:
        close_old_connections()
        try:
            return function(*args)
        finally:
            with activity.shield_thread_cancel_exception():
                close_old_connections()

    return run


class _Workflows(WorkflowInboundInterceptor):
    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
        with _without_database():
            return await super().execute_workflow(input)

    async def handle_signal(self, input: HandleSignalInput) -> None:
        with _without_database():
            await super().handle_signal(input)

    async def handle_query(self, input: HandleQueryInput) -> Any:
        with _without_database():
            return await super().handle_query(input)

    async def handle_update_handler(self, input: HandleUpdateInput) -> Any:
        with _without_database():
            return await super().handle_update_handler(input)


@contextmanager
def _without_database() -> Iterator[None]:
    """Explains the errors of models in workflows.

    Django refuses the ORM on an event loop, and Temporal refuses threads in a workflow's loop.
    """
    try:
        yield
    except SynchronousOnlyOperation as error:
        raise _refusal(error) from error
    except NotImplementedError as error:
        if not _asked_for_a_thread(error):
            raise
        raise _refusal(error) from error


def _asked_for_a_thread(error: NotImplementedError) -> bool:
    return any(frame.filename == asgiref.sync.__file__ for frame in traceback.extract_tb(error.__traceback__))


def _refusal(error: BaseException) -> ModelInWorkflowError:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_OF_OTHERS)] or frames
    return ModelInWorkflowError(
        f"a workflow uses the database, at {own[-1].filename}, line {own[-1].lineno}: {own[-1].line}. Workflows run "
        "again from their history, and must not: use models in activities, and pass plain values to the workflow."
    )


W = TypeVar("W")
A = TypeVar("A")
R = TypeVar("R")
P = ParamSpec("P")


class CommitOptions(StartOptions, total=False):
    """Options of ``start_on_commit``.

    They are those of the start, the database, and the connection.
    """

    using: str | None
    robust: bool
    temporal: Temporal | None


@overload
def start_on_commit(workflow: MethodAsyncNoParam[W, R], *, id: str, **options: Unpack[CommitOptions]) -> None: ...
@overload
def start_on_commit(
    workflow: MethodAsyncSingleParam[W, A, R], arg: A, *, id: str, **options: Unpack[CommitOptions]
) -> None: ...
@overload
def start_on_commit(
    workflow: Callable[Concatenate[W, P], Awaitable[R]],
    *,
    args: Sequence[Any],
    id: str,
    **options: Unpack[CommitOptions],
) -> None: ...
@overload
def start_on_commit(
    workflow: str, *arg: Any, id: str, args: Sequence[Any] = (), **options: Unpack[CommitOptions]
) -> None: ...
def start_on_commit(
    workflow: Any,
    *arg: Any,
    id: str,
    using: str | None = None,
    robust: bool = False,
    temporal: Temporal | None = None,
    **options: Any,
) -> None:
    """Start a workflow when the current transaction commits.

    Without a transaction, it starts immediately.

    The arguments are those of ``temporal.sync.start_workflow``; ``using`` names the database. If the server is
    unreachable at the commit, the transaction stays committed. The end of the ``atomic`` block raises the error, or
    logs it with ``robust``. If a workflow must start in any case, write a row and let an activity or a schedule start
    it.

    Raises ``SynchronousOnlyOperation`` on an event loop, whose transactions are in another thread: see
    ``astart_on_commit``. Before the commit, raises ``TemporalSettingsError`` if no task queue is known, and
    ``TypeError`` if the arguments do not fit the workflow.
    """
    _refuse_event_loop()
    sync = (temporal or get_temporal()).sync
    arg, options = fill_arguments(workflow, arg, sync.with_task_queue(options))

    def start() -> None:
        sync.start_workflow(workflow, *arg, id=id, **options)

    transaction.on_commit(start, using=using, robust=robust)


@overload
async def astart_on_commit(
    workflow: MethodAsyncNoParam[W, R], *, id: str, **options: Unpack[CommitOptions]
) -> None: ...
@overload
async def astart_on_commit(
    workflow: MethodAsyncSingleParam[W, A, R], arg: A, *, id: str, **options: Unpack[CommitOptions]
) -> None: ...
@overload
async def astart_on_commit(
    workflow: Callable[Concatenate[W, P], Awaitable[R]],
    *,
    args: Sequence[Any],
    id: str,
    **options: Unpack[CommitOptions],
) -> None: ...
@overload
async def astart_on_commit(
    workflow: str, *arg: Any, id: str, args: Sequence[Any] = (), **options: Unpack[CommitOptions]
) -> None: ...
async def astart_on_commit(workflow: Any, *arg: Any, id: str, **options: Any) -> None:
    """Start a workflow from asynchronous code when the transaction commits.

    Like ``start_on_commit``, with the transaction of ``sync_to_async``'s thread.

    Django has no transactions on an event loop. So in most asynchronous views there is no transaction, and the workflow
    has started when this returns. The event loop is not blocked.
    """
    await sync_to_async(start_on_commit)(workflow, *arg, id=id, **options)


def _refuse_event_loop() -> None:
    """Refuse a call on an event loop.

    With ``DJANGO_ALLOW_ASYNC_UNSAFE``, Django itself would refuse only at the commit.
    """
    if in_event_loop():
        raise SynchronousOnlyOperation(
            "start_on_commit() is called on an event loop, where Django has no transactions: use "
            "await astart_on_commit(…), or call it in the function that you give to sync_to_async"
        )
