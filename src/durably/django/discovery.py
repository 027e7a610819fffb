"""The functions in each Django app's ``durable.py``, and the start of an engine.

The engine starts in the project's processes.
"""

import importlib
import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import django.apps
import django.core.signals
from django.utils.module_loading import module_has_submodule

from durably.client import Client
from durably.engines import InProcessEngine
from durably.errors import FunctionConfigInvalidError
from durably.functions.diagnostics import find_unserved, warn_of_unserved
from durably.functions.function import Function

MODULE = "durable"

_logger = logging.getLogger("durably.django")


class Discovered:
    """The discovered clients and functions, in the order of ``INSTALLED_APPS``."""

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self.modules: list[ModuleType] = []
        self._functions: dict[str, list[Function[Any]]] = {}

    def find(self) -> None:
        """Import the modules.

        Raises ``FunctionConfigInvalidError`` for a function whose client is in no such module.
        """
        self.clients.clear()
        self._functions.clear()
        self.modules = list(_modules())
        clients = {
            id(value): value for module in self.modules for value in vars(module).values() if isinstance(value, Client)
        }
        self.clients.extend(clients.values())
        app_ids = {client.app_id for client in self.clients}
        for module in self.modules:
            for name, value in vars(module).items():
                if isinstance(value, Function):
                    self._add(value, f"{module.__name__}.{name}", app_ids)

    def functions_of(self, client: Client) -> list[Function[Any]]:
        return list(self._functions.get(client.app_id, ()))

    def _add(self, function: Function[Any], name: str, app_ids: set[str]) -> None:
        app_id = function.opts.app_id
        if app_id not in app_ids:
            raise FunctionConfigInvalidError(
                f"{name} is a function of the app {app_id!r}, whose client is in no {MODULE}.py: import it there"
            )
        functions = self._functions.setdefault(app_id, [])
        if function not in functions:
            functions.append(function)


def _modules() -> Iterator[ModuleType]:
    """Import the modules that exist. Errors in a module are raised."""
    for config in django.apps.apps.get_app_configs():
        if module_has_submodule(config.module, MODULE):
            yield importlib.import_module(f"{config.name}.{MODULE}")


def report_unserved(**_: Any) -> None:
    """Warn of functions that are in no ``durable.py`` and no ``serve``.

    It is called after the first request, which has loaded ``urls.py``. Without functions the engine of this process
    does not start, and sleeping runs do not continue.
    """
    django.core.signals.request_finished.disconnect(report_unserved)
    warn_of_unserved(find_unserved(is_in_process=True), _logger)


discovered = Discovered()
"""Filled once all apps are loaded, if ``durably.django`` is installed."""


def start_with_project(client: Client, engine: InProcessEngine) -> None:
    """Start the engine with the server, or with the first request to any URL.

    The request starts it if the server is unknown. If the first request loads ``urls.py``, the engine starts at the
    request's end, and a warning names the way to start with the server.
    """
    was_loaded_before_requests = False

    def start_at_begin(**_: Any) -> None:
        nonlocal was_loaded_before_requests
        was_loaded_before_requests = True
        engine.start_with_request()

    def start_at_end(**_: Any) -> None:
        nonlocal was_loaded_before_requests
        if engine.start_with_request() and not was_loaded_before_requests:
            was_loaded_before_requests = True
            client.logger.warning(
                "the engine of the app %r starts only now, because Django has loaded urls.py with the first request. "
                "Until then no runs continue. To start the engine with the server, write "
                'INSTALLED_APPS += ["durably.django"] in the settings, and put the functions and their client into '
                "the durable.py of an installed app",
                client.app_id,
            )

    django.core.signals.request_started.connect(start_at_begin, weak=False)
    django.core.signals.request_finished.connect(start_at_end, weak=False)
    engine.start_with_server()
