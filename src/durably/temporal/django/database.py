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
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec

import asgiref.sync
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import close_old_connections, connections, transaction
from temporalio import activity
from temporalio.client import Client
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


P = ParamSpec("P")


def _on_commit(method: Callable[Concatenate[Client, P], Awaitable[Any]]) -> Callable[P, None]:
    def start(*args: P.args, **options: P.kwargs) -> None:
        """Start a workflow when the current transaction commits, or immediately without a transaction.

        The arguments are those of ``temporal.sync.start_workflow``. If the server is unreachable at the commit, the
        transaction stays committed, and the end of the ``atomic`` block raises the error. If a workflow must start in
        any case, write a row and let an activity or a schedule start it.

        Asynchronous code calls ``await sync_to_async(start_on_commit)(…)``, since Django has no transactions on an
        event loop. For another database or connection, give ``transaction.on_commit`` the call itself:
        ``transaction.on_commit(lambda: connections["billing"].sync.start_workflow(…), using="billing", robust=True)``.
        """
        if in_event_loop():  # Otherwise it would fail after the commit.
            raise SynchronousOnlyOperation(
                "start_on_commit() is called on an event loop, where Django has no transactions: use "
                "await sync_to_async(start_on_commit)(…)"
            )
        client = get_temporal().sync
        transaction.on_commit(lambda: client.run(lambda client: method(client, *args, **options)))

    return start


start_on_commit = _on_commit(Client.start_workflow)
