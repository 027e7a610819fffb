"""The project's worker: discovery of workflows and activities, and Django's database in them.

They are in ``workflows.py`` and ``activities.py`` of its apps; both may be packages. A module's ``TASK_QUEUE`` replaces
``settings.TEMPORAL_TASK_QUEUE`` for its own workflows and activities. A module's ``TEMPORAL_CONNECTION`` is the
connection whose worker runs them; the default is ``default``. Modules may also call ``temporal.add_worker``.

Database connections of an activity are treated as in a request: Django closes dead and old ones before and after it
(``CONN_MAX_AGE``), and connections of its own threads at its end. An activity is not in a transaction: its commits
stay, even if it is retried. A workflow runs again from its history and must not query the database: a model in a
workflow raises an error that names the line.
"""

import functools
import importlib
import importlib.util
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import asgiref.sync
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.apps import AppConfig, apps
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
from durably.execution.step import is_async
from durably.temporal.compat import activity_definition, workflow_parts
from durably.temporal.declarations import WorkerDeclaration, with_interceptor

from .conf import DEFAULT_CONNECTION
from .conf import connections as temporal_connections

WORKFLOWS, ACTIVITIES = "workflows", "activities"


def discover(connection: str = DEFAULT_CONNECTION) -> list[WorkerDeclaration]:
    """Declarations for the worker of a connection.

    Raises the errors of the modules' import.
    """
    declarations, shared = _declared(connection), modules_shared_with_workflows()
    return [
        replace(each, passed_through=(*each.passed_through, *shared)) for each in with_interceptor(declarations, _ORM)
    ]


def _declared(connection: str) -> list[WorkerDeclaration]:
    """Declarations of a connection. Imports the modules, which may call add_worker."""
    modules = list(project_modules())
    found = [
        WorkerDeclaration(
            task_queue=getattr(module, "TASK_QUEUE", None),
            workflows=workflows_of(module),
            activities=tuple(
                each
                for each in vars(module).values()
                if callable(each) and _is_own(each, module) and activity_definition(each) is not None
            ),
        )
        for module in modules
        if connection_of(module) == connection
    ]
    return [each for each in (*temporal_connections[connection].workers, *found) if each.workflows or each.activities]


def connection_of(module: ModuleType) -> str:
    """The connection whose worker runs a module's workflows and activities."""
    return str(getattr(module, "TEMPORAL_CONNECTION", DEFAULT_CONNECTION))


def project_modules() -> Iterator[ModuleType]:
    """``workflows`` and ``activities`` of each installed app that has them, imported."""
    for app in apps.get_app_configs():
        for name in (WORKFLOWS, ACTIVITIES):
            if _has(app, name):
                yield importlib.import_module(f"{app.name}.{name}")


def modules_shared_with_workflows() -> tuple[str, ...]:
    """Modules that workflows share with the process.

    They are Django, models and activities, and apps without workflows. Django refuses to import a model twice.
    """
    shared = ["django", "asgiref"]
    for app in apps.get_app_configs():
        if _has(app, WORKFLOWS):
            shared += [f"{app.name}.models", f"{app.name}.{ACTIVITIES}"]
        else:
            shared.append(app.name)
    return tuple(shared)


def workflows_of(module: ModuleType) -> tuple[type, ...]:
    """Workflows that a module defines, without imported ones."""
    classes = [each for each in vars(module).values() if isinstance(each, type) and _is_own(each, module)]
    return tuple(each for each in classes if workflow_parts(each) is not None)


def _is_own(found: Any, module: ModuleType) -> bool:
    return f"{getattr(found, '__module__', '')}.".startswith(f"{module.__name__}.")


def _has(app: AppConfig, name: str) -> bool:
    return importlib.util.find_spec(f"{app.name}.{name}") is not None


def signals_by_workflow(connection: str = DEFAULT_CONNECTION) -> dict[str, tuple[str, ...]]:
    """Names of signals by the workflow's name, for the admin's form."""
    names: dict[str, tuple[str, ...]] = {}
    for declaration in _declared(connection):
        for each in declaration.workflows:
            if (found := workflow_parts(each)) is not None and found.name is not None:
                names[found.name] = tuple(found.signals)
    return names


# The database

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
        frames = traceback.extract_tb(error.__traceback__)
        if not any(frame.filename == asgiref.sync.__file__ for frame in frames):  # It did not ask for a thread.
            raise
        raise _refusal(error) from error


def _refusal(error: BaseException) -> ModelInWorkflowError:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_OF_OTHERS)] or frames
    return ModelInWorkflowError(
        f"a workflow uses the database, at {own[-1].filename}, line {own[-1].lineno}: {own[-1].line}. Workflows run "
        "again from their history, and must not: use models in activities, and pass plain values to the workflow."
    )


_ORM = OrmInterceptor()
"""A single object, so that several declarations for one task queue have the same interceptor."""
