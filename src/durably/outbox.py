"""The outbox: events in the user's own database, and the relay that sends them. Also results of transactional steps.

``durably.django`` and ``durably.sqlalchemy`` write a row of the table ``durably_outbox`` in the user's transaction. A
``Relay`` sends the rows in their order, with the ids that they have, and deletes them. If it dies between the two, the
engine ignores the repeated ids. So a transaction that commits sends its events exactly once, and one that is rolled
back sends none.

A transactional step writes its result into the table ``durably_transactions`` in its own transaction. If the process
dies after the commit and before the engine has the result, the next attempt returns the stored result.

The SQL is written once, for PostgreSQL, MySQL and SQLite, over the small interface ``Connection``.
"""

import atexit
import contextvars
import itertools
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Annotated, Any, Protocol

import msgspec

from durably.engine_client import block, execute
from durably.events import encode_event, sending_run
from durably.execution import in_step
from durably.execution.step import Step
from durably.functions.diagnostics import check_send
from durably.protocol.events import Event
from durably.protocol.text import get_logger, printable
from durably.settings import is_test_run
from durably.values.codecs import Unset
from durably.values.outputs import decode_as, encode_as, handler_codec, to_json

from .client import Client
from .errors import Error, FunctionConfigInvalidError, SendEventsError

EVENTS_TABLE = "durably_outbox"
RESULTS_TABLE = "durably_transactions"
RELAY_THREAD = "durably-relay"

POLL_SECONDS = 0.1
"""Interval at which a relay looks for rows of other processes. Those of its own process wake it.

A ``NOTIFY`` of PostgreSQL in the user's transaction would hold a lock during its commit, one transaction at a time.
"""
_MAX_RETRY_SECONDS = 30.0
_LOG_SECONDS = 60.0
_BATCH = 100
_STOP_SECONDS = 3.0
_REPORT_SECONDS = 10.0
_LINGER_SECONDS = 60.0
_TABLES_SECONDS = 5.0
_CLEAN_SECONDS = 3600.0
_RESULT_DAYS = 30
"""Days after which a stored result is deleted. The engine has it, unless it was down for all of that time."""
_LOCK_SEED = 0x6475_7261_626C_79
"""Makes PostgreSQL's advisory lock of an app differ from others: "durably" in ASCII."""

_logger = get_logger("durably.outbox")


class Result(Protocol):
    """The rows that a statement returned, and the number of rows that it changed."""

    @property
    def rows(self) -> Sequence[Sequence[Any]]: ...

    @property
    def count(self) -> int: ...


class Connection(Protocol):
    """A connection to the user's database. ``dialect`` is "postgresql", "mysql" or "sqlite"."""

    dialect: str

    def execute(self, sql: str, values: Mapping[str, Any] | None = None) -> Result:
        """Execute a statement, whose placeholders have the form ``:name``."""
        ...


class Database(Protocol):
    """A database that has the tables. ``name`` names it in logs and metrics."""

    name: str

    def relaying(self) -> AbstractContextManager[Connection]:
        """A transaction for the relay's work; of SQLite, a connection that commits each statement.

        A transaction of SQLite would block all writers while events are sent.
        """
        ...

    def has_tables(self) -> bool: ...

    def disconnect(self) -> None:
        """Close the connection that this thread has kept from ``relaying``, if it is not used otherwise."""
        ...


# -- sending


def write_events(connection: Connection, events: Event | Sequence[Event], client: Client) -> list[str]:
    """Insert the rows of events for the relay of the client's app, and return the events' ids.

    An event without an id gets one. A row also has the run and the trace in which the event is sent. Raises
    ``EventUnserializableError``.
    """
    check_send()
    now, sender = time.time_ns() // 1_000_000, sending_run.get()
    trace = None if client.tracing is None else client.tracing.current_trace()
    ids = []
    for event in [events] if isinstance(events, Event) else events:
        event_id = getattr(event, "id", "") or str(uuid.uuid4())
        encoded = encode_event(event, now=now)
        fields = {**msgspec.json.decode(encoded), "id": event_id}
        if sender is not None:
            fields["sender"] = sender
        if trace is not None:
            fields["trace"] = trace
        connection.execute(
            f"INSERT INTO {EVENTS_TABLE} (app, event) VALUES (:app, :event)",
            {"app": client.app_id, "event": msgspec.json.encode(fields).decode()},
        )
        ids.append(event_id)
    return ids


class _Row(msgspec.Struct):
    key: int
    event: Event
    sender: "_Sender"


class _Sender(msgspec.Struct):
    """The id of the run that sent an event, and its trace context, if any."""

    sender: Annotated[str, msgspec.Meta(pattern=r"\A[!-~]+\Z")] | None = None  # the value of a header
    trace: str | None = None


class Backlog(msgspec.Struct, frozen=True):
    """Numbers of events in an outbox: those that wait, and those that the engine has refused.

    ``oldest`` is the time that the first of those that wait has waited, in seconds.
    """

    waiting: int
    refused: int
    oldest: float


class Relay:
    """Sends the events of an app in a database with ``client``. The methods may be called in any thread.

    Of several relays of an app one works at a time, by a lock of PostgreSQL and MySQL. With SQLite several may work,
    and send the same events. The engine ignores the repetitions, and the order is kept, because each sends all rows in
    their order.
    """

    def __init__(self, client: Client, database: Database) -> None:
        self.client = client
        self.database = database
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._may_send: Callable[[], bool] = lambda: True
        client.relays.append(self)
        atexit.register(self.stop)
        if client.in_process is not None:
            client.in_process.add_relay(self)
        elif hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def wake(self) -> None:
        """Look for rows now. It is called after a commit in this process.

        If the engine is elsewhere, the relay starts in this process, and ends when no event has waited for a minute:
        events are sent even if nobody runs `durably relay`.
        """
        with self._lock:
            self._woken.set()
            if self.client.in_process is None and not is_test_run():
                self._start(_LINGER_SECONDS)

    def send_waiting(self) -> int:
        """Send all events that wait, in this thread, and return their number. For tests.

        Raises ``SendEventsError`` if the engine does not take them.
        """
        total = 0
        try:
            while sent := self._send_batch():
                total += sent
        finally:
            self.database.disconnect()
        return total

    def backlog(self) -> Backlog:
        """The numbers of events in the outbox now."""
        try:
            return self._read_backlog()
        finally:
            self.database.disconnect()

    def _read_backlog(self) -> Backlog:
        with self.database.relaying() as connection:
            sql = f"SELECT COUNT(*), COUNT(error) FROM {EVENTS_TABLE} WHERE app = :app"
            total, refused = connection.execute(sql, {"app": self.client.app_id}).rows[0]
            rows = self._read(connection, 1)
        oldest = 0.0
        if rows:
            with suppress(ValueError, RecursionError):  # an invalid row, which will be refused
                if sent_at := msgspec.json.decode(rows[0][1], type=Event).ts:
                    oldest = max(time.time() - sent_at / 1000, 0.0)
        return Backlog(total - refused, refused, oldest)

    # the thread

    def start(self, may_send: Callable[[], bool] = lambda: True) -> None:
        """Send in a thread of its own, as long as ``may_send``."""
        with self._lock:
            self._may_send = may_send
            self._start(None)

    def _start(self, linger: float | None) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        self._stopping = threading.Event()
        run, arguments = contextvars.Context().run, (self._run, self._stopping, linger)
        self._thread = threading.Thread(target=run, args=arguments, name=RELAY_THREAD, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the events that are being sent, and wait for that at most 3 s."""
        thread, self._thread = self._thread, None
        self._stopping.set()
        self._woken.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_STOP_SECONDS)

    def forget(self) -> None:
        """Leave the thread to the parent, in a forked child."""
        self._thread = None
        self._lock, self._woken, self._stopping = threading.Lock(), threading.Event(), threading.Event()

    def _run(self, stopping: threading.Event, linger: float | None) -> None:
        """Send until ``stop``, or until no event has waited for ``linger`` seconds."""
        failures, logged_at, clean_at, report_at, has_tables = 0, 0.0, 0.0, 0.0, False
        used_at = time.monotonic()
        while True:
            sent, delay = 0, POLL_SECONDS
            try:
                if self._may_send():
                    has_tables = has_tables or self.database.has_tables()
                    sent = self._send_batch() if has_tables else 0
                    if not has_tables:
                        delay = _TABLES_SECONDS
                    elif time.monotonic() >= clean_at:
                        clean_at = time.monotonic() + _CLEAN_SECONDS
                        self._delete_old_results()
                    if has_tables and linger is None and time.monotonic() >= report_at:
                        report_at = time.monotonic() + _REPORT_SECONDS
                        self._report_backlog()
                failures = 0
            except Exception as error:
                if stopping.is_set():
                    break
                failures += 1
                delay = min(POLL_SECONDS * 2**failures, _MAX_RETRY_SECONDS)
                if time.monotonic() - logged_at > _LOG_SECONDS or failures == 1:
                    logged_at = time.monotonic()
                    _logger.error(
                        "the events in the outbox of %s are not sent, which is tried again: %s: %s",
                        self.database.name,
                        type(error).__name__,
                        error,
                        exc_info=None if isinstance(error, Error) else error,
                    )
                self.database.disconnect()
            if sent or failures:
                used_at = time.monotonic()
            if stopping.is_set():
                break
            if not sent:
                self._woken.wait(delay)
            with self._lock:
                if linger is not None and time.monotonic() - used_at > linger and not self._woken.is_set():
                    self._thread = None
                    break
                self._woken.clear()
        self.database.disconnect()

    def _send_batch(self) -> int:
        """Send and delete the first rows. Returns the number of rows that are done."""
        with self.database.relaying() as connection:
            if not self._read(connection) or not self._take_lock(connection):
                return 0
            rows, refused = list[_Row](), dict[int, str]()
            for key, text in self._read(connection):  # again: before the lock, another relay may have sent them
                try:
                    event = msgspec.json.decode(text, type=Event)
                    sender = msgspec.json.decode(text, type=_Sender)
                    if not event.id:
                        raise ValueError("it has no id, so that it could be sent twice")
                    rows.append(_Row(key, event, sender))
                except (ValueError, TypeError, RecursionError) as error:  # msgspec's errors, too
                    refused[key] = f"the row is not an event: {error}"
            for sender, group in itertools.groupby(rows, lambda row: row.sender):
                refused |= self._send(list(group), sender)
            if sent := [row.key for row in rows if row.key not in refused]:
                connection.execute(f"DELETE FROM {EVENTS_TABLE} WHERE id IN ({', '.join(map(str, sent))})")
            for key, reason in refused.items():
                _logger.error(
                    "row %s in the outbox of %s was refused and is not sent: %s. Correct it and set its error to NULL, "
                    "or delete it",
                    key,
                    self.database.name,
                    reason,
                )
                connection.execute(
                    f"UPDATE {EVENTS_TABLE} SET error = :error WHERE id = :id", {"error": reason, "id": key}
                )
            return len(sent) + len(refused)

    def _read(self, connection: Connection, limit: int = _BATCH) -> Sequence[Sequence[Any]]:
        sql = f"SELECT id, event FROM {EVENTS_TABLE} WHERE app = :app AND error IS NULL ORDER BY id LIMIT {limit}"
        return connection.execute(sql, {"app": self.client.app_id}).rows

    def _take_lock(self, connection: Connection) -> bool:
        """Make this the only relay of the app that works. Returns ``False`` if another one does.

        PostgreSQL holds the lock until the end of the transaction, MySQL until that of the connection.
        """
        match connection.dialect:
            case "postgresql":
                sql = f"SELECT pg_try_advisory_xact_lock(hashtextextended(:app, {_LOCK_SEED}))"
            case "mysql":
                sql = "SELECT GET_LOCK(CONCAT('durably.', MD5(CONCAT(DATABASE(), '/', :app))), 0)"
            case _:
                return True
        return bool(connection.execute(sql, {"app": self.client.app_id}).rows[0][0])

    def _send(self, rows: Sequence[_Row], sender: _Sender) -> dict[int, str]:
        """Send events. Returns the reasons for those that no attempt can send, by row.

        Raises the error of a failed attempt.
        """
        tracing = self.client.tracing
        token = sending_run.set(sender.sender)
        try:
            with nullcontext() if tracing is None or sender.trace is None else tracing.continuing(sender.trace):
                self.client.send_sync([row.event for row in rows])
        except SendEventsError as error:
            if error.is_retriable:
                raise
            if len(rows) == 1:
                return {rows[0].key: printable(error.message)}
        else:
            return {}
        finally:
            sending_run.reset(token)
        refused = dict[int, str]()
        for row in rows:
            refused |= self._send([row], sender)
        return refused

    def _report_backlog(self) -> None:
        backlog = self._read_backlog()
        report = {"name": self.database.name, **msgspec.structs.asdict(backlog)}
        with suppress(Error):  # The engine does not answer, which sends report, or does not keep the numbers.
            block(self.client, lambda io: execute(self.client, "report_outbox", report, io))

    def _delete_old_results(self) -> None:
        before = time.time_ns() // 1_000_000 - _RESULT_DAYS * 86_400_000
        with self.database.relaying() as connection:
            connection.execute(f"DELETE FROM {RESULTS_TABLE} WHERE created < :before", {"before": before})


# -- transactional steps

_OF_STEP = "WHERE run_id = :run_id AND step_id = :step_id"


class StepResult:
    """The result of a step in the user's database, for one attempt at the step.

    Use it in the transaction of the step: ``read`` before its work, ``write`` after it. As a context manager around
    the transaction, it lets the step call the function again if it has failed, as after a deadlock.
    """

    def __init__(self, step: Step, run_id: str, handler: Callable[..., Any], args: Sequence[Any]) -> None:
        self._step = step
        self._key = {"run_id": run_id, "step_id": step.hashed_id}
        self._name = f'step "{step.name}"'
        self._encode, self._decode = step.request.encode, step.request.decode
        if step.request.handler is not handler:  # Another function of the user calls it.
            codec = handler_codec(step.name, handler, args, Unset, None)
            self._encode = None if codec is None else partial(encode_as, codec, self._name)
            self._decode = None if codec is None else partial(decode_as, codec, self._name)

    def __enter__(self) -> None:
        self._step.is_rolled_back = False

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._step.is_rolled_back = kind is not None

    def read(self, connection: Connection) -> tuple[bool, Any]:
        """Whether the step has committed before, and its result.

        Another attempt at the same step waits here until this transaction ends.
        """
        insert = f"{RESULTS_TABLE} (run_id, step_id, created) VALUES (:run_id, :step_id, :created)"
        sql = f"INSERT INTO {insert} ON CONFLICT DO NOTHING"
        if connection.dialect == "mysql":
            sql = f"INSERT IGNORE INTO {insert}"
        if connection.execute(sql, {**self._key, "created": time.time_ns() // 1_000_000}).count:
            return False, None
        [[text]] = connection.execute(f"SELECT result FROM {RESULTS_TABLE} {_OF_STEP}", self._key).rows
        if text is None:
            raise FunctionConfigInvalidError(
                f"{self._name} has committed its transaction without a result, because its function calls commit(): "
                "remove that call, as the transaction commits at its end. It is unknown which part of the work is "
                f"done. To let the step run again, delete its row in {RESULTS_TABLE} (run {self._key['run_id']})"
            )
        data = msgspec.json.decode(text)
        return True, data if self._decode is None else self._decode(data)

    def write(self, connection: Connection, value: Any) -> None:
        """Store the result. Raises ``OutputUnserializableError``."""
        encoded, _ = to_json(value if self._encode is None else self._encode(value), self._name)
        connection.execute(
            f"UPDATE {RESULTS_TABLE} SET result = :result {_OF_STEP}", {**self._key, "result": encoded.decode()}
        )


def step_result(handler: Callable[..., Any], args: Sequence[Any]) -> StepResult | None:
    """The stored result of the step that is running; ``None`` outside of steps.

    ``handler`` is the transactional function. Raises ``FunctionConfigInvalidError`` for a second one in the same step.
    """
    step, run_id = in_step.get(), sending_run.get()
    if step is None or run_id is None:
        return None
    if step.transaction is not None and not (step.is_rolled_back and step.transaction is handler):
        raise FunctionConfigInvalidError(
            f'step "{step.name}" calls a second transaction, {getattr(handler, "__qualname__", handler)}: only one '
            "result of a step can be stored. Give each transaction a step of its own"
        )
    step.transaction = handler
    return StepResult(step, run_id, handler, args)
