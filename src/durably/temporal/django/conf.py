"""The project's connections to Temporal, from Django's settings, and starts at a commit.

- ``TEMPORAL_SERVER``, ``TEMPORAL_NAMESPACE`` and ``TEMPORAL_TASK_QUEUE`` are separate settings.
- The dictionary ``TEMPORAL`` has the others: the keys of ``durably.temporal.settings.FRAMEWORK_KEYS``, and ``OPTIONS``,
  further arguments of ``durably.temporal.Temporal``.
- ``TEMPORAL_CONNECTIONS`` has such a dictionary for each of several connections, by name. Its ``default`` replaces the
  settings above.

The environment takes precedence.
"""

import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Concatenate, ParamSpec, cast

from django.conf import settings
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction
from django.utils.functional import SimpleLazyObject
from temporalio.client import Client

from durably.io.background_loop import running_loop
from durably.temporal.client.connection import Temporal
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.settings import FRAMEWORK_KEYS

DEFAULT_CONNECTION = "default"
_PLAIN = ("SERVER", "NAMESPACE", "TASK_QUEUE")
_OTHER_KEYS = frozenset({"OPTIONS", "UI_URL"})
_SEVERAL = "TEMPORAL_CONNECTIONS"


class Connections:
    """The project's connections by name, each created at its first use.

    An example is ``connections["billing"]``.

    A connection whose settings name no server uses the server of ``default``, with its TLS and credentials. Iterating
    gives the names, ``default`` first. Raises ``TemporalSettingsError`` for an unknown name and for invalid settings.
    """

    def __init__(self) -> None:
        self._made: dict[str, Temporal] = {}
        self._lock = threading.RLock()

    def __getitem__(self, name: str) -> Temporal:
        with self._lock:
            if name not in self._made:
                self._made[name] = self._make(name)
            return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(
            [DEFAULT_CONNECTION, *(name for name in getattr(settings, _SEVERAL, {}) if name != DEFAULT_CONNECTION)]
        )

    def __contains__(self, name: object) -> bool:
        return any(name == each for each in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _make(self, name: str) -> Temporal:
        if name not in self:
            raise TemporalSettingsError(
                f"there is no connection {name!r} to Temporal: settings.{_SEVERAL} has {', '.join(self)}"
            )
        options = connection_settings(name).get("OPTIONS", {})
        named: dict[str, Any] = (
            {} if name == DEFAULT_CONNECTION else {"name": name, "same_server_as": self[DEFAULT_CONNECTION]}
        )

        def configuration() -> dict[str, Any]:
            return {key: value for key, value in connection_settings(name).items() if key in FRAMEWORK_KEYS}

        return Temporal(configuration=configuration, **named, **options)


def connection_settings(name: str) -> dict[str, Any]:
    """Django's settings of a connection, with the keys of ``TEMPORAL``.

    Raises ``TemporalSettingsError``.
    """
    several = getattr(settings, _SEVERAL, {})
    plain = ("TEMPORAL", *(f"TEMPORAL_{key}" for key in _PLAIN))
    single = [f"settings.{each}" for each in plain if getattr(settings, each, None)]
    if name == DEFAULT_CONNECTION and name in several and single:
        raise TemporalSettingsError(
            f"settings.{_SEVERAL} has the connection 'default', and so have {', '.join(single)}: keep one of them"
        )
    if name in several:
        where, given = f"settings.{_SEVERAL}[{name!r}]", several[name]
    else:
        where, given = "settings.TEMPORAL", getattr(settings, "TEMPORAL", {})
    if unknown := sorted(set(given) - FRAMEWORK_KEYS - _OTHER_KEYS):
        known = ", ".join(sorted(FRAMEWORK_KEYS | _OTHER_KEYS))
        raise TemporalSettingsError(f"{where} has an unknown key {unknown[0]!r}; known are {known}")
    alone = {} if name in several else {key: getattr(settings, f"TEMPORAL_{key}", None) for key in _PLAIN}
    return {key: value for key, value in {**alone, **given}.items() if value is not None}


def project_secrets() -> list[str]:
    """The project's secret key, and former keys that are still accepted."""
    return [settings.SECRET_KEY, *getattr(settings, "SECRET_KEY_FALLBACKS", ())]


connections = Connections()


temporal = cast(Temporal, SimpleLazyObject(lambda: connections[DEFAULT_CONNECTION]))
"""The default connection. Modules import it at their top, before settings may be read."""


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
        if running_loop() is not None:  # Otherwise it would fail after the commit.
            raise SynchronousOnlyOperation(
                "start_on_commit() is called on an event loop, where Django has no transactions: use "
                "await sync_to_async(start_on_commit)(…)"
            )
        client = connections[DEFAULT_CONNECTION].sync
        transaction.on_commit(lambda: client.run(lambda client: method(client, *args, **options)))

    return start


start_on_commit = _on_commit(Client.start_workflow)
