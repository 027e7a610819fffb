"""What the project's worker runs: the workflows and activities of ``workflows.py`` and ``activities.py`` of its apps.

Both may be packages. A module's ``TASK_QUEUE`` is where its own are run, if not on ``settings.TEMPORAL_TASK_QUEUE``.
A module's ``TEMPORAL_CONNECTION`` is the connection whose worker runs them, if not ``default``.
What needs more is declared with ``temporal.add_worker`` in one of those modules, and is run too.
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
from .orm import OrmInterceptor

WORKFLOWS, ACTIVITIES = "workflows", "activities"

_ORM = OrmInterceptor()
"""One for all, so that what is declared for one task queue in several places agrees on it."""


def discover(connection: str = DEFAULT_CONNECTION) -> list[WorkerDeclaration]:
    """What the worker of a connection runs. Raises what importing the modules raises."""
    declarations, shared = _declared(connection), modules_shared_with_workflows()
    return [
        replace(each, passed_through=(*each.passed_through, *shared)) for each in with_interceptor(declarations, _ORM)
    ]


def _declared(connection: str) -> list[WorkerDeclaration]:
    """In this order: the modules may call ``add_worker`` as they are imported."""
    modules = list(project_modules())
    found = [_declare(module) for module in modules if connection_of(module) == connection]
    return [each for each in (*get_temporal(connection).workers, *found) if each.workflows or each.activities]


def connection_of(module: ModuleType) -> str:
    """The name of the connection whose worker runs what a module defines."""
    return str(getattr(module, "TEMPORAL_CONNECTION", DEFAULT_CONNECTION))


def project_modules() -> Iterator[ModuleType]:
    """``workflows`` and ``activities`` of each installed app that has them, imported."""
    for app in apps.get_app_configs():
        for name in (WORKFLOWS, ACTIVITIES):
            if _has(app, name):
                yield importlib.import_module(f"{app.name}.{name}")


def modules_shared_with_workflows() -> tuple[str, ...]:
    """What workflows take from the process instead of importing it anew: Django, the models and activities of apps, and
    apps without workflows as a whole. A model can be there but once."""
    shared = ["django", "asgiref"]
    for app in apps.get_app_configs():
        if _has(app, WORKFLOWS):
            shared += [f"{app.name}.models", f"{app.name}.{ACTIVITIES}"]
        else:
            shared.append(app.name)
    return tuple(shared)


def workflows_of(module: ModuleType) -> tuple[type, ...]:
    """The workflows that a module defines, not those that it imports from elsewhere."""
    classes = [each for each in vars(module).values() if isinstance(each, type) and _is_own(each, module)]
    return tuple(each for each in classes if workflow_parts(each) is not None)


def activities_of(module: ModuleType) -> tuple[Callable[..., Any], ...]:
    """The activities that a module defines, not those that it imports from elsewhere."""
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
    """The signals of the project's workflows, by the workflow's name, for people to choose from."""
    names: dict[str, tuple[str, ...]] = {}
    for declaration in _declared(connection):
        for each in declaration.workflows:
            if (found := workflow_parts(each)) is not None and found.name is not None:
                names[found.name] = tuple(found.signals)
    return names
