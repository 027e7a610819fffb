"""The project's workflows and activities.

They are in ``workflows.py`` and ``activities.py`` of its apps.

Both may be packages. A module's ``TASK_QUEUE`` replaces ``settings.TEMPORAL_TASK_QUEUE`` for its own workflows and
activities. A module's ``TEMPORAL_CONNECTION`` is the connection whose worker runs them; the default is ``default``.
Modules may also call ``temporal.add_worker``.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

from django.apps import AppConfig, apps

from durably.temporal.compat import activity_definition, workflow_parts
from durably.temporal.declarations import WorkerDeclaration, with_interceptor

from .conf import DEFAULT_CONNECTION, get_temporal
from .database import OrmInterceptor

WORKFLOWS, ACTIVITIES = "workflows", "activities"

_ORM = OrmInterceptor()
"""A single object, so that several declarations for one task queue have the same interceptor."""


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
    found = [_declare(module) for module in modules if connection_of(module) == connection]
    return [each for each in (*get_temporal(connection).workers, *found) if each.workflows or each.activities]


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


def activities_of(module: ModuleType) -> tuple[Callable[..., Any], ...]:
    """Activities that a module defines, without imported ones."""
    functions = [each for each in vars(module).values() if callable(each) and _is_own(each, module)]
    return tuple(each for each in functions if activity_definition(each) is not None)


def _declare(module: ModuleType) -> WorkerDeclaration:
    return WorkerDeclaration(
        task_queue=getattr(module, "TASK_QUEUE", None),
        workflows=workflows_of(module),
        activities=activities_of(module),
    )


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
