"""System checks: ``manage.py check`` says what would keep the worker from running, and so does the worker's start."""

from types import ModuleType
from typing import Any

from django.core import checks
from django.db.models import Model

from durably.errors import Error
from durably.temporal.declarations import by_task_queue

from .conf import get_temporal
from .discovery import discover, project_modules, workflows_of


def register() -> None:
    checks.register(check_settings, "temporal")
    checks.register(check_workers, "temporal")
    checks.register(check_transport, "temporal", deploy=True)


def check_settings(app_configs: Any, **options: Any) -> list[checks.CheckMessage]:
    """``durably_temporal.E001``: the settings cannot be used."""
    try:
        get_temporal().data_converter  # noqa: B018  It needs the settings, and their encryption keys.
    except (Error, ImportError, TypeError) as error:
        hint = "See TEMPORAL_… and TEMPORAL in the settings."
        return [checks.Error(str(error), hint=hint, id="durably_temporal.E001")]
    return []


def check_workers(app_configs: Any, **options: Any) -> list[checks.CheckMessage]:
    """``E002``: a workflow's module has a model; ``E003``: the worker cannot be run as it is declared."""
    if check_settings(app_configs):
        return []
    messages = [message for module in project_modules() for message in _check_module(module)]
    declarations = discover()
    try:
        if declarations:
            by_task_queue(declarations, get_temporal().settings.task_queue)
    except Error as error:
        messages.append(checks.Error(str(error), id="durably_temporal.E003"))
    return messages


def _check_module(module: ModuleType) -> list[checks.CheckMessage]:
    if not workflows_of(module):
        return []
    return [
        checks.Error(
            f"{module.__name__} has the model {name}, and workflows must not use models.",
            hint="Workflows run again from their history: use models in activities.py, and hand ids and plain values "
            "to the workflow.",
            obj=module.__name__,
            id="durably_temporal.E002",
        )
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Model)
    ]


def check_transport(app_configs: Any, **options: Any) -> list[checks.CheckMessage]:
    """``W001``, with ``check --deploy``: what goes to a server elsewhere is readable on the way."""
    if check_settings(app_configs):
        return []
    settings = get_temporal().settings
    host = settings.address.rpartition(":")[0]
    if settings.tls or settings.api_key or host in ("localhost", "127.0.0.1", "[::1]"):
        return []
    return [
        checks.Warning(
            f"The connection to the Temporal server at {settings.address} is not encrypted.",
            hint='Set TEMPORAL = {"TLS": True}, or certificates, or an API key.',
            id="durably_temporal.W001",
        )
    ]
