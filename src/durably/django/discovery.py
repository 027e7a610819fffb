"""The functions in each Django app's ``durable.py``."""

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import django.apps
from django.utils.module_loading import module_has_submodule

from durably.client import Client
from durably.errors import FunctionConfigInvalidError
from durably.functions.function import Function

MODULE = "durable"


class Discovered:
    """The clients and functions that were found, in the order of ``INSTALLED_APPS``."""

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self._functions: dict[str, list[Function[Any]]] = {}

    def find(self) -> None:
        """Import the modules. Raises ``FunctionConfigInvalidError`` for a function without a client beside it."""
        self.clients.clear()
        self._functions.clear()
        modules = list(_modules())
        clients = {
            id(value): value for module in modules for value in vars(module).values() if isinstance(value, Client)
        }
        self.clients.extend(clients.values())
        app_ids = {client.app_id for client in self.clients}
        for module in modules:
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


discovered = Discovered()
"""Filled once all apps are loaded, if ``durably.django`` is installed."""
