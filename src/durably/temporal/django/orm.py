"""Django's ORM in activities, and its refusal in workflows.

An activity gets what a request gets: connections that died or are too old are closed before it and after it
(``CONN_MAX_AGE``), and those of its own threads at its end. It is not in a transaction: what it commits stays, also
when it is retried.

A workflow runs again from its history, in which a query of the database has no place: there, using a model is an error
that names the line.
"""

import functools
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import asgiref.sync
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import close_old_connections, connections
from temporalio import activity
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
from durably.temporal.surroundings import is_async

_OF_OTHERS = (*(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")), __file__)
"""Where code is that is not the project's."""


class ModelInWorkflowError(Error):
    """A workflow has used the database; the message names the line and says where that belongs."""


class OrmInterceptor(Interceptor):
    """For ``interceptors`` of a worker whose activities use the ORM; the project's own worker has it."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Activities(next)

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> type[WorkflowInboundInterceptor]:
        return _Workflows


class _Activities(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        if is_async(input.fn):
            # A thread of its own for what Django runs in one: activities do not wait for each other's queries.
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
    """Django refuses the ORM on an event loop, and Temporal threads in a workflow's loop: say what that means here."""
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
        "again from their history, and must not: use models in activities, and hand plain values to the workflow."
    )
