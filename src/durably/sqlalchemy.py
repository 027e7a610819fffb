"""SQLAlchemy: events and results of steps in the transaction of a session. See ``durably.outbox``.

``metadata`` has the tables, for Alembic's ``target_metadata`` or ``metadata.create_all``.
"""

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

try:
    import sqlalchemy as sa
except ImportError as error:
    raise ImportError('durably.sqlalchemy needs SQLAlchemy: pip install "durably[sqlalchemy]"') from error

from sqlalchemy import event as sa_event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from durably.client import Client
from durably.errors import FunctionConfigInvalidError
from durably.execution.step import is_async
from durably.outbox import EVENTS_TABLE, RESULTS_TABLE, Relay, step_result, write_events
from durably.protocol.events import Event
from durably.protocol.text import get_logger

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound=Session)
A = TypeVar("A", bound=AsyncSession)

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # Only INTEGER is numbered by SQLite.
_TEXT = sa.Text().with_variant(sa.Text(2**32 - 1), "mysql", "mariadb")

metadata = sa.MetaData()
events_table = sa.Table(
    EVENTS_TABLE,
    metadata,
    sa.Column("id", _KEY, primary_key=True, autoincrement=True),
    sa.Column("app", sa.String(255), nullable=False),
    sa.Column("event", _TEXT, nullable=False),
    sa.Column("error", _TEXT),
    sqlite_autoincrement=True,
)
results_table = sa.Table(
    RESULTS_TABLE,
    metadata,
    sa.Column("id", _KEY, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.String(255), nullable=False),
    sa.Column("step_id", sa.String(64), nullable=False),
    sa.Column("result", _TEXT),
    sa.Column("created", sa.BigInteger, nullable=False, index=True),
    sa.UniqueConstraint("run_id", "step_id", name="durably_transactions_step"),
)

_relays: list[tuple[str | None, Relay]] = []
"""With the names of their databases."""
_without_relay = set[str | None]()
_logger = get_logger("durably.outbox")
_HAS_EVENTS = "durably_has_events"
"""The key in ``Session.info``."""


@overload
def send(session: Session, events: Event | Sequence[Event]) -> list[str]: ...
@overload
def send(session: AsyncSession, events: Event | Sequence[Event]) -> Coroutine[Any, Any, list[str]]: ...
def send(session: Session | AsyncSession, events: Event | Sequence[Event]) -> Any:
    """Send one event or several when the session's transaction commits. Returns their ids.

    It writes rows into the table ``durably_outbox``, and a relay sends them: see ``relay``. Await it with an
    ``AsyncSession``. Raises ``EventUnserializableError``, and ``FunctionConfigInvalidError`` without a relay.
    """
    if isinstance(session, AsyncSession):
        return session.run_sync(send, events)
    if not _relays:
        raise FunctionConfigInvalidError(
            "durably.sqlalchemy.send: this process has no relay, so the events might never be sent: call "
            "durably.sqlalchemy.relay(client, engine) in a module that it imports"
        )
    ids = write_events(SessionConnection(session), events, _relay_of(session).client)
    session.info[_HAS_EVENTS] = True
    return ids


def _relay_of(session: Session) -> Relay:
    """The relay of the session's database. If none has its name, the first one, and a warning."""
    name = session.get_bind().engine.url.database
    for database, each in _relays:
        if database == name:
            return each
    if name not in _without_relay:
        _without_relay.add(name)
        _logger.warning(
            "durably.sqlalchemy.send: no relay of this process reads the database %s, so its events might never be "
            "sent: call durably.sqlalchemy.relay(client, engine) for it",
            name,
        )
    return _relays[0][1]


@sa_event.listens_for(Session, "after_commit")
def _wake_relays(session: Session) -> None:
    if session.info.pop(_HAS_EVENTS, False):
        for _, each in _relays:
            each.wake()


def relay(client: Client, engine: sa.Engine | AsyncEngine | str) -> Relay:
    """Send the events of the database with ``client``.

    It runs in the process that runs the engine of the client. With an engine elsewhere, `durably relay` runs it. It has
    a connection of its own. ``engine`` may be a URL.
    """
    if isinstance(engine, str):
        url = sa.make_url(engine)
        engine = create_async_engine(url) if url.get_dialect().is_async else sa.create_engine(url)
    made = Relay(client, _AsyncDatabase(engine) if isinstance(engine, AsyncEngine) else _SyncDatabase(engine))
    _relays.append((engine.url.database, made))
    return made


@overload
def transaction(
    sessions: sessionmaker[S],
) -> Callable[[Callable[Concatenate[S, P], T]], Callable[P, T]]: ...
@overload
def transaction(
    sessions: async_sessionmaker[A],
) -> Callable[[Callable[Concatenate[A, P], Awaitable[T]]], Callable[P, Coroutine[Any, Any, T]]]: ...
def transaction(sessions: Any) -> Any:
    """Make a function a transaction that a step executes exactly once, as a decorator.

    The function's first argument is a session, which commits at its end. The result is stored in the same transaction.
    If the process dies before the engine has the result, the step's next attempt returns the stored one and does not
    run the function. Only one such function may run in a step. Outside of steps it is only a transaction. An async
    function needs an ``async_sessionmaker``.
    """

    def decorate(handler: Callable[..., Any]) -> Callable[..., Any]:
        if is_async(handler):
            return _async_transaction(sessions, handler)
        return _sync_transaction(sessions, handler)

    return decorate


def _sync_transaction(sessions: sessionmaker[Any], handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    def run(*args: Any, **kwargs: Any) -> Any:
        result = step_result(run, args)
        with result or nullcontext(), sessions.begin() as session:
            if result is None:
                return handler(session, *args, **kwargs)
            connection = SessionConnection(session)
            is_done, value = result.read(connection)
            if not is_done:
                value = handler(session, *args, **kwargs)
                result.write(connection, value)
        return value

    return run


def _async_transaction(sessions: async_sessionmaker[Any], handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    async def run(*args: Any, **kwargs: Any) -> Any:
        result = step_result(run, args)
        with result or nullcontext():
            async with sessions.begin() as session:
                if result is None:
                    return await handler(session, *args, **kwargs)
                is_done, value = await session.run_sync(lambda inner: result.read(SessionConnection(inner)))
                if not is_done:
                    value = await handler(session, *args, **kwargs)
                    await session.run_sync(lambda inner: result.write(SessionConnection(inner), value))
        return value

    return run


class _Result:
    def __init__(self, result: Any) -> None:
        self.rows: Sequence[Sequence[Any]] = result.all() if result.returns_rows else ()
        self.count: int = result.rowcount


def _dialect_of(bind: Any) -> str:
    name: str = bind.dialect.name
    return "mysql" if name == "mariadb" else name


class SessionConnection:
    """A ``durably.outbox.Connection``: that of a session or connection."""

    def __init__(self, session: Session | sa.Connection) -> None:
        self.dialect = _dialect_of(session.get_bind() if isinstance(session, Session) else session)
        self._session = session

    def execute(self, sql: str, values: Mapping[str, Any] | None = None) -> _Result:
        return _Result(self._session.execute(sa.text(sql), dict(values or {})))


def _name_of(url: sa.URL) -> str:
    """The host and the database."""
    return "/".join(filter(None, (url.host, url.database)))


class _LoopConnection:
    """A ``durably.outbox.Connection`` for a thread with an event loop of its own, which runs only in ``execute``."""

    def __init__(self, connection: AsyncConnection, loop: asyncio.AbstractEventLoop) -> None:
        self.dialect = _dialect_of(connection)
        self._connection, self._loop = connection, loop

    def execute(self, sql: str, values: Mapping[str, Any] | None = None) -> _Result:
        return _Result(self._loop.run_until_complete(self._connection.execute(sa.text(sql), dict(values or {}))))


class _SyncDatabase:
    """A ``durably.outbox.Database``. The relay's connection is not one of the app's pool, except of SQLite's."""

    def __init__(self, engine: sa.Engine) -> None:
        self.name = _name_of(engine.url)
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._engine = engine if self._is_sqlite else _copy(engine)
        self._local = threading.local()

    @contextmanager
    def relaying(self) -> Iterator[SessionConnection]:
        if self._is_sqlite:
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                yield SessionConnection(connection)
            return
        connection = getattr(self._local, "connection", None) or self._engine.connect()
        self._local.connection = connection
        with connection.begin():
            yield SessionConnection(connection)

    def has_tables(self) -> bool:
        return sa.inspect(self._engine).has_table(EVENTS_TABLE)

    def disconnect(self) -> None:
        connection = self._local.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()
            self._engine.dispose()


class _AsyncDatabase:
    """A ``durably.outbox.Database``. Each thread has its own event loop and pool, because connections belong to one."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.name = _name_of(engine.url)
        self._engine = engine.sync_engine
        self._local = threading.local()

    def _open(self) -> tuple[asyncio.AbstractEventLoop, AsyncEngine, AsyncConnection]:
        opened: tuple[asyncio.AbstractEventLoop, AsyncEngine, AsyncConnection] | None
        opened = getattr(self._local, "opened", None)
        if opened is None:
            loop, engine = asyncio.new_event_loop(), AsyncEngine(_copy(self._engine))
            try:
                connection = loop.run_until_complete(engine.connect().start())
                if engine.dialect.name == "sqlite":
                    loop.run_until_complete(connection.execution_options(isolation_level="AUTOCOMMIT"))
            except BaseException:
                loop.close()
                raise
            opened = self._local.opened = loop, engine, connection
        return opened

    @contextmanager
    def relaying(self) -> Iterator[_LoopConnection]:
        loop, _, connection = self._open()
        try:
            yield _LoopConnection(connection, loop)
            loop.run_until_complete(connection.commit())
        except BaseException:
            self.disconnect()
            raise

    def has_tables(self) -> bool:
        loop, _, connection = self._open()
        return loop.run_until_complete(connection.run_sync(lambda inner: sa.inspect(inner).has_table(EVENTS_TABLE)))

    def disconnect(self) -> None:
        opened = self._local.__dict__.pop("opened", None)
        if opened is not None:
            loop, engine, connection = opened
            with suppress(Exception):  # of a connection that is broken
                loop.run_until_complete(connection.close())
            loop.run_until_complete(engine.dispose())
            loop.close()


def _copy(engine: sa.Engine) -> sa.Engine:
    """An engine with a pool of its own, which connects in the same way."""
    return sa.Engine(engine.pool.recreate(), engine.dialect, engine.url)
