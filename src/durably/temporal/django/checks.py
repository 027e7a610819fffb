"""System checks: errors that would prevent the worker from running.

``manage.py check`` and the worker's start report them. ``check --deploy`` also reports those of
``check_deployment``.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core import checks
from django.db.models import Model
from django.urls import get_resolver
from temporalio.service import RPCError

from durably.errors import Error
from durably.temporal.declarations import by_task_queue
from durably.temporal.errors import TemporalUnreachableError
from durably.temporal.namespace import find_errors

from .conf import DEFAULT_CONNECTION, connections
from .worker import connection_of, discover, project_modules, workflows_of
from .workflow_pages import ui_url

_TIMEOUT = timedelta(seconds=5)
Messages = Iterator[checks.CheckMessage]


def settings_errors() -> Messages:
    """``E001``: the settings of a connection cannot be used."""
    hint = "See TEMPORAL_…, TEMPORAL and TEMPORAL_CONNECTIONS in the settings."
    try:
        names = list(connections)
    except Error as error:
        yield checks.Error(str(error), hint=hint, id="durably_temporal.E001")
        return
    for name in names:
        try:
            connections[name].data_converter  # noqa: B018  It needs the settings, and their encryption keys.
            ui_url(connections[name], name)
        except (Error, ImportError, TypeError) as error:
            text = str(error) if name == DEFAULT_CONNECTION else f"connection {name!r}: {error}"
            yield checks.Error(text, hint=hint, id="durably_temporal.E001")


def worker_errors() -> Messages:
    """Check workflows, workers and connections of modules.

    ``E002``: a workflow's module has a model. ``E003``: a worker cannot run as it is declared. ``E004``: a module's
    connection is unknown.
    """
    for module in project_modules():
        if (name := connection_of(module)) not in connections:
            yield checks.Error(
                f"{module.__name__} has TEMPORAL_CONNECTION = {name!r}, and there is no such connection.",
                hint=f"settings.TEMPORAL_CONNECTIONS has {', '.join(connections)}.",
                id="durably_temporal.E004",
            )
        models = [name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, Model)]
        if models and workflows_of(module):
            yield checks.Error(
                f"{module.__name__} has the model {models[0]}, and workflows must not use models.",
                hint="Workflows run again from their history: use models in activities.py, and pass ids and plain "
                "values to the workflow.",
                obj=module.__name__,
                id="durably_temporal.E002",
            )
    for name in connections:
        try:
            if declarations := discover(name):
                by_task_queue(declarations, connections[name].settings.task_queue)
        except Error as error:
            yield checks.Error(str(error), id="durably_temporal.E003")


def transport_warnings() -> Messages:
    """``W001``: the connection to a remote server is not encrypted."""
    found = [connections[name].settings for name in connections]
    for address in dict.fromkeys(each.address for each in found if not (each.tls or each.api_key)):
        if address.rpartition(":")[0] not in ("localhost", "127.0.0.1", "[::1]"):
            yield checks.Warning(
                f"The connection to the Temporal server at {address} is not encrypted.",
                hint='Set TEMPORAL = {"TLS": True}, or certificates, or an API key.',
                id="durably_temporal.W001",
            )


def search_attribute_errors() -> Messages:
    """``E005``: a server does not know a search attribute. ``W002``: it is unknown whether the server knows it."""
    if getattr(settings, "ROOT_URLCONF", None):
        get_resolver().url_patterns  # noqa: B018  Gateways declare their attributes when the URLs are imported.
    for temporal in (connections[name] for name in connections):
        declared = temporal.search_attributes
        if not declared:
            continue
        try:
            errors = temporal.sync.run(lambda client, declared=declared: find_errors(client, declared, _TIMEOUT))  # type: ignore[misc]
        except (TemporalUnreachableError, RPCError) as error:
            names = ", ".join(each.key.name for each in declared)
            yield checks.Warning(
                f"Cannot check whether the search attributes {names} are registered: {error}",
                hint="Run the check where the Temporal server can be reached.",
                id="durably_temporal.W002",
            )
        else:
            yield from (checks.Error(error, id="durably_temporal.E005") for error in errors)


def check(app_configs: Any = None, **options: Any) -> list[checks.CheckMessage]:
    """The other checks need valid settings."""
    return list(settings_errors()) or list(worker_errors())


def check_deployment(app_configs: Any = None, **options: Any) -> list[checks.CheckMessage]:
    return [] if list(settings_errors()) else [*transport_warnings(), *search_attribute_errors()]
