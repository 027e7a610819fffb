"""System checks for the worker.

``manage.py check`` and the worker's start report errors that would prevent the worker from running.
"""

from datetime import timedelta
from types import ModuleType
from typing import Any

from django.conf import settings
from django.core import checks
from django.db.models import Model
from django.urls import get_resolver
from temporalio.service import RPCError

from durably.errors import Error
from durably.temporal.client.connection import Temporal
from durably.temporal.declarations import by_task_queue
from durably.temporal.errors import TemporalUnreachableError
from durably.temporal.namespace.search_attributes import find_errors

from .conf import DEFAULT_CONNECTION, connections
from .discovery import connection_of, discover, project_modules, workflows_of
from .views import codec_servers
from .workflow_pages import ui_url

_TIMEOUT = timedelta(seconds=5)


def register() -> None:
    checks.register(check_settings, "temporal")
    checks.register(check_workers, "temporal")
    checks.register(check_codec_servers, "temporal")
    checks.register(check_transport, "temporal", deploy=True)
    checks.register(check_search_attributes, "temporal", deploy=True)


def check_settings(app_configs: Any, **options: Any) -> list[checks.CheckMessage]:
    """``durably_temporal.E001``: the settings of a connection cannot be used."""
    try:
        names = list(connections)
    except Error as error:
        return [_settings_error(str(error))]
    return [message for name in names for message in _check_connection(name)]


def _check_connection(name: str) -> list[checks.CheckMessage]:
    try:
        connections[name].data_converter  # noqa: B018  It needs the settings, and their encryption keys.
        ui_url(connections[name], name)
    except (Error, ImportError, TypeError) as error:
        return [_settings_error(str(error) if name == DEFAULT_CONNECTION else f"connection {name!r}: {error}")]
    return []


def _settings_error(text: str) -> checks.CheckMessage:
    hint = "See TEMPORAL_…, TEMPORAL and TEMPORAL_CONNECTIONS in the settings."
    return checks.Error(text, hint=hint, id="durably_temporal.E001")


def check_workers(app_configs: Any, **options: Any) -> list[checks.CheckMessage]:
    """Check workflows, workers and connections of modules.

    ``E002``: a workflow's module has a model. ``E003``: a worker cannot run as it is declared. ``E004``: a module's
    connection is unknown, or possibly forgotten.
    """
    if check_settings(app_configs):
        return []
    modules = list(project_modules())
    messages = [message for module in modules for message in _check_module(module)]
    messages += _check_connections_of(modules)
    for name in connections:
        try:
            if declarations := discover(name):
                by_task_queue(declarations, connections[name].settings.task_queue)
        except Error as error:
            messages.append(checks.Error(str(error), id="durably_temporal.E003"))
    return messages


def _check_connections_of(modules: list[ModuleType]) -> list[checks.CheckMessage]:
    """Check the connections of the modules of each app.

    If another connection's worker runs an app's activities, the app's workflows wait for them forever.
    """
    messages = []
    for module in modules:
        if (name := connection_of(module)) not in connections:
            text = f"{module.__name__} has TEMPORAL_CONNECTION = {name!r}, and there is no such connection."
            messages.append(_connection_error(text, f"settings.TEMPORAL_CONNECTIONS has {', '.join(connections)}."))
    by_app: dict[str, list[ModuleType]] = {}
    for module in modules:
        by_app.setdefault(module.__name__.rpartition(".")[0], []).append(module)
    for siblings in by_app.values():
        silent = [module for module in siblings if not hasattr(module, "TEMPORAL_CONNECTION")]
        if len(silent) == 1 < len(siblings):
            [named] = set(siblings) - set(silent)
            text = f"{named.__name__} has TEMPORAL_CONNECTION, and {silent[0].__name__} has none."
            messages.append(_connection_error(text, f"Name it in both; {DEFAULT_CONNECTION!r} is a name too."))
    return messages


def _connection_error(text: str, hint: str) -> checks.CheckMessage:
    return checks.Error(text, hint=hint, id="durably_temporal.E004")


def _check_module(module: ModuleType) -> list[checks.CheckMessage]:
    if not workflows_of(module):
        return []
    return [
        checks.Error(
            f"{module.__name__} has the model {name}, and workflows must not use models.",
            hint="Workflows run again from their history: use models in activities.py, and pass ids and plain values "
            "to the workflow.",
            obj=module.__name__,
            id="durably_temporal.E002",
        )
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Model)
    ]


def check_codec_servers(app_configs: Any, **options: Any) -> list[checks.CheckMessage]:
    """``E006``: a codec server of the project's URLs has a connection without a codec."""
    if check_settings(app_configs) or not hasattr(settings, "ROOT_URLCONF"):
        return []
    get_resolver().url_patterns  # noqa: B018  codec_urls() is called when the URLs are imported.
    messages = []
    for server in codec_servers:
        try:
            server.check()
        except Error as error:
            messages.append(checks.Error(str(error), id="durably_temporal.E006"))
    return messages


def check_transport(app_configs: Any, **options: Any) -> list[checks.CheckMessage]:
    """Check the encryption of connections, with ``check --deploy``.

    ``W001``: the connection to a remote server is not encrypted.
    """
    if check_settings(app_configs):
        return []
    open_to_all = {connections[name].settings.address: None for name in connections if _is_open(connections[name])}
    return [
        checks.Warning(
            f"The connection to the Temporal server at {address} is not encrypted.",
            hint='Set TEMPORAL = {"TLS": True}, or certificates, or an API key.',
            id="durably_temporal.W001",
        )
        for address in open_to_all
    ]


def _is_open(temporal: Temporal) -> bool:
    settings = temporal.settings
    host = settings.address.rpartition(":")[0]
    return not (settings.tls or settings.api_key or host in ("localhost", "127.0.0.1", "[::1]"))


def check_search_attributes(app_configs: Any, **options: Any) -> list[checks.CheckMessage]:
    """Check the search attributes on servers, with ``check --deploy``.

    ``E005``: a server does not know a search attribute. ``W002``: it is unknown whether the server knows it.
    """
    if check_settings(app_configs):
        return []
    if hasattr(settings, "ROOT_URLCONF"):
        get_resolver().url_patterns  # noqa: B018  Gateways declare their attributes when the URLs are imported.
    return [message for name in connections for message in _check_attributes(connections[name])]


def _check_attributes(temporal: Temporal) -> list[checks.CheckMessage]:
    if not temporal.search_attributes:
        return []
    try:
        errors = temporal.sync.run(lambda client: find_errors(client, temporal.search_attributes, _TIMEOUT))
    except (TemporalUnreachableError, RPCError) as error:
        names = ", ".join(each.key.name for each in temporal.search_attributes)
        return [
            checks.Warning(
                f"Cannot check whether the search attributes {names} are registered: {error}",
                hint="Run the check where the Temporal server can be reached.",
                id="durably_temporal.W002",
            )
        ]
    return [checks.Error(error, id="durably_temporal.E005") for error in errors]
