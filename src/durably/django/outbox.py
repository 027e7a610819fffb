"""Events and results of steps in Django's databases. See ``durably.outbox``."""

import functools
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, overload

from django.db import DEFAULT_DB_ALIAS, connections, router
from django.db import transaction as django_transaction

from durably.client import Client
from durably.errors import FunctionConfigInvalidError
from durably.execution.step import is_async
from durably.outbox import EVENTS_TABLE, RELAY_THREAD, Relay, step_result, write_events
from durably.protocol.events import Event

P = ParamSpec("P")
T = TypeVar("T")

_PLACEHOLDER = re.compile(r":(\w+)")
relays: dict[str, Relay] = {}
"""The relays of this process, by the alias of the database."""


def _atomic(using: str) -> Any:
    """``atomic``, which Django types as a decorator too."""
    return django_transaction.atomic(using=using)


def send(events: Event | Sequence[Event], using: str = DEFAULT_DB_ALIAS) -> list[str]:
    """Send one event or several when the current transaction of the database ``using`` commits. Returns their ids.

    It writes rows into the model ``OutboxEvent``, and a relay sends them. Without a transaction they are committed at
    once. Raises ``EventUnserializableError``, and ``FunctionConfigInvalidError`` if nothing would send the rows.
    """
    relay = relays.get(using)
    if relay is None:
        raise FunctionConfigInvalidError(
            f"durably.django.send: the database {using!r} has no relay, so the events would not be sent: put the "
            "client into the durable.py of an installed app, and let your routers migrate the app durably there"
        )
    ids = write_events(DjangoConnection(using), events, relay.client)
    engine = relay.client.in_process
    # Under a test engine no relay runs: the events are sent by the callback.
    is_tested = engine is not None and not engine.runs_relays
    django_transaction.on_commit(relay.send_waiting if is_tested else relay.wake, using=using)
    return ids


@overload
def transaction(handler: Callable[P, T], /) -> Callable[P, T]: ...
@overload
def transaction(*, using: str = ...) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def transaction(handler: Any = None, /, *, using: str = DEFAULT_DB_ALIAS) -> Any:
    """Make a function a transaction that a step executes exactly once, as a decorator.

    The function runs in ``atomic``, and its result is stored in the same transaction of the database ``using``. If the
    process dies before the engine has the result, the step's next attempt returns the stored one and does not run the
    function. Only one such function may run in a step. Outside of steps it is only ``atomic``.

    Raises ``FunctionConfigInvalidError`` for an async function, because Django has no async transactions. A step of an
    async function runs a sync one in a worker thread.
    """
    if handler is None:
        return functools.partial(_make_transaction, using)
    return _make_transaction(using, handler)


def _make_transaction(using: str, handler: Callable[P, T]) -> Callable[P, T]:
    if is_async(handler):
        raise FunctionConfigInvalidError(
            f"durably.django.transaction: {handler.__qualname__} is async, and Django has no async transactions: make "
            "it a sync function, which an async function's step runs in a worker thread"
        )

    @functools.wraps(handler)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        result = step_result(run, args)
        with result or nullcontext(), _atomic(using):
            if result is None:
                return handler(*args, **kwargs)
            connection = DjangoConnection(using)
            is_done, value = result.read(connection)
            if not is_done:
                value = handler(*args, **kwargs)
                result.write(connection, value)
        return value  # type: ignore[no-any-return]

    return run


@dataclass
class _Result:
    rows: Sequence[Sequence[Any]]
    count: int


class DjangoConnection:
    """A ``durably.outbox.Connection``: that of this thread."""

    def __init__(self, using: str) -> None:
        self._connection = connections[using]
        self.dialect = self._connection.vendor

    def execute(self, sql: str, values: Mapping[str, Any] | None = None) -> _Result:
        given = values or {}
        with self._connection.cursor() as cursor:
            cursor.execute(_PLACEHOLDER.sub("%s", sql), [given[name] for name in _PLACEHOLDER.findall(sql)])
            return _Result(cursor.fetchall() if cursor.description else (), cursor.rowcount)


class DjangoDatabase:
    """A ``durably.outbox.Database``."""

    def __init__(self, using: str) -> None:
        self._using = using
        self.name = using

    @contextmanager
    def relaying(self) -> Iterator[DjangoConnection]:
        if connections[self._using].vendor == "sqlite":
            yield DjangoConnection(self._using)
            return
        with _atomic(self._using):
            yield DjangoConnection(self._using)

    def has_tables(self) -> bool:
        connection = connections[self._using]
        with connection.cursor() as cursor:
            return EVENTS_TABLE in connection.introspection.table_names(cursor)

    def disconnect(self) -> None:
        if threading.current_thread().name == RELAY_THREAD:  # Other threads use it for the project's own queries.
            connections[self._using].close()


def add_relays(client: Client) -> None:
    """Make a relay for each database that has the model by Django's routers. ``client`` sends the events."""
    from .models import OutboxEvent

    for using in connections:
        if router.allow_migrate_model(using, OutboxEvent):
            relays[using] = Relay(client, DjangoDatabase(using))
