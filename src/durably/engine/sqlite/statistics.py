"""Numbers of runs by minute since the epoch, and apps that do not answer: counted after commits.

A commit costs a few additions. A separate transaction stores the counts of past minutes, at most once a minute and only
after further commits. Counts that are not stored when an engine ends are read from the runs at the next start, so they
are exact. (If the clock was set back, runs may count for a later minute.)
"""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from durably.engine.core.run_state import RunStatus
from durably.engine.model.overview import UnreachedApp
from durably.engine.model.runs import END_UPDATES, UpdateKind
from durably.engine.model.settings import Clock
from durably.engine.model.subscriptions import Group, Observer, RunChange
from durably.engine.sqlite.database import connect_reader
from durably.engine.sqlite.queries.search import key_at
from durably.engine.sqlite.reader import Reader
from durably.engine.sqlite.writer import Transactions
from durably.protocol.engine_errors import EngineClosedError
from durably.protocol.opcodes import Opcode
from durably.protocol.text import get_logger

MINUTE = 60_000
"""Milliseconds of a minute."""
QUARTER, HOUR, DAY = 15, 60, 1440
"""Minutes of the intervals of counts."""
MINUTES_FOR, QUARTERS_FOR, DAYS_KEPT = 3 * HOUR, 3 * DAY, 30
"""Counts by minute are kept for three hours, those by quarters of an hour for three days."""
COLUMNS = ("created", "completed", "failed", "cancelled", "skipped")
CREATED, COMPLETED, FAILED = range(3)
ENDS = {
    RunStatus.COMPLETED: COMPLETED,
    RunStatus.FAILED: FAILED,
    RunStatus.CANCELLED: 3,
    RunStatus.SKIPPED: 4,
}
"""Indexes of counts: created runs, and ended runs by status."""

Counts = dict[int, dict[str, list[int]]]
"""Numbers of runs in the order of ``COLUMNS``, by minute and function."""

_ADD = ", ".join(f"{column} = {column} + excluded.{column}" for column in COLUMNS)
_SUMS = ", ".join(f"sum({column})" for column in COLUMNS)
_NAMES = ", ".join(COLUMNS)


def add_count(counts: Counts, minute: int, function_id: str, place: int, number: int = 1) -> None:
    functions = counts.get(minute)
    if functions is None:
        functions = counts[minute] = {}
    numbers = functions.get(function_id)
    if numbers is None:
        numbers = functions[function_id] = [0] * len(COLUMNS)
    numbers[place] += number


def counted_until(connection: sqlite3.Connection) -> int | None:
    """The minute before which all counts are stored; ``None`` if none are."""
    (minute,) = connection.execute("SELECT counted_until FROM statistics").fetchone()
    return minute if minute is None else int(minute)


def put_counts(connection: sqlite3.Connection, counts: Mapping[int, Mapping[str, list[int]]], until: int) -> None:
    """Store the counts of the minutes before ``until``, which are not stored yet."""
    rows = [
        (minute, function_id, *numbers)
        for minute, functions in counts.items()
        if minute < until
        for function_id, numbers in functions.items()
    ]
    connection.executemany(
        f"INSERT INTO run_counts (minute, function_id, {_NAMES}) VALUES (?, ?, ?, ?, ?, ?, ?) "
        f"ON CONFLICT DO UPDATE SET {_ADD}",
        rows,
    )
    connection.execute("UPDATE statistics SET counted_until = ?", (until,))


def join_counts(connection: sqlite3.Connection, now: int) -> None:
    """Merge the counts of old minutes, and delete those that are too old.

    ``now`` is a minute.
    """
    for length, before in ((QUARTER, now - MINUTES_FOR), (HOUR, now - QUARTERS_FOR)):
        before -= before % length
        old = f"minute < ? AND minute % {length} <> 0"
        connection.execute(
            f"INSERT INTO run_counts (minute, function_id, {_NAMES}) "
            f"SELECT minute - minute % {length}, function_id, {_SUMS} FROM run_counts WHERE {old} GROUP BY 1, 2 "
            f"ON CONFLICT DO UPDATE SET {_ADD}",
            (before,),
        )
        connection.execute(f"DELETE FROM run_counts WHERE {old}", (before,))
    for table in ("run_counts", "usage_counts"):
        connection.execute(f"DELETE FROM {table} WHERE minute < ?", (now - DAYS_KEPT * DAY,))


def stored_counts(
    connection: sqlite3.Connection, since: int, until: int, interval: int, function_id: str | None = None
) -> Iterator[tuple[int, str, list[int]]]:
    """Counts of ``[since, until)`` by the first minute of an interval and function.

    Intervals begin at ``since``, and have ``interval`` minutes.
    """
    rows = connection.execute(
        f"SELECT ? + (minute - ?) / ? * ?, function_id, {_SUMS} FROM run_counts "
        "WHERE minute >= ? AND minute < ? AND (? IS NULL OR function_id = ?) GROUP BY 1, 2",
        (since, since, interval, interval, since, until, function_id, function_id),
    )
    return ((minute, found, list(numbers)) for minute, found, *numbers in rows)


def count_runs(connection: sqlite3.Connection, since: int) -> Counts:
    """The counts of the minutes from ``since`` on, from the runs themselves."""
    counts: Counts = {}
    start = since * MINUTE
    created: Iterable[tuple[int, str, int]] = connection.execute(
        "SELECT created_at / ?, function_id, count(*) FROM runs WHERE key >= ? AND created_at >= ? GROUP BY 1, 2",
        (MINUTE, key_at(connection, "runs", "created_at", start - MINUTE), start),
    )
    for minute, function_id, number in created:
        add_count(counts, minute, function_id, CREATED, number)
    ended: Iterable[tuple[int, str, str, int]] = connection.execute(
        "SELECT ended_at / ?, function_id, status, count(*) FROM runs WHERE ended_at >= ? GROUP BY 1, 2, 3",
        (MINUTE, start),
    )
    for minute, function_id, status, number in ended:
        add_count(counts, minute, function_id, ENDS[RunStatus(status)], number)
    return counts


def count_live(connection: sqlite3.Connection) -> dict[str, int]:
    """Numbers of runs that have not ended, by function."""
    return dict(
        connection.execute(
            "SELECT function_id, count(*) FROM run_states CROSS JOIN runs ON runs.key = run_states.run_key GROUP BY "
            "function_id"
        )
    )


_SETTLE_MILLISECONDS = 5_000
"""Delay after which a minute is complete: the commits of its transactions have been counted by then."""
_NEVER = 2**62
_MOST_APPS = 1_000
_MOST_RETRYING = 100_000
_LACKING = "the statistics lack runs from before the start: %s"

_logger = get_logger("durably.engine")

_ANSWERED = {
    UpdateKind.RETRYING,
    UpdateKind.SLEEPING,
    UpdateKind.WAITING,
    UpdateKind.RUN_COMPLETED,
    UpdateKind.RUN_FAILED,
}
"""Updates that result from an app's answer."""
_PLACES = {END_UPDATES[status]: place for status, place in ENDS.items()} | {UpdateKind.RUN_STARTED: CREATED}


class Statistics(Observer):
    """Counts runs by minute and function, and runs that have not ended by function.

    Call ``open`` before the first commit of the engine, and ``start`` after it.
    """

    def __init__(self, path: Path, transactions: Transactions, clock: Clock) -> None:
        self._path = path
        self._transactions = transactions
        self._clock = clock
        self._snapshot: sqlite3.Connection | None = None
        self._counting: asyncio.Task[None] | None = None
        self._is_counted = asyncio.Event()
        self._counts: Counts = {}
        self._live: Counter[str] = Counter()
        self._stored_until = self._open_from = clock.now() // MINUTE
        """The minute before which counts are stored, and the one before which counts no longer change."""
        self._joined_at = 0
        self._store_at = _NEVER
        self.unreached_apps: dict[str, UnreachedApp] = {}
        self.retrying: set[str] = set()
        """Ids of runs whose last attempt failed, and that are tried again."""

    async def open(self) -> None:
        """Begin to read the database in its state before the first commit."""
        try:
            self._snapshot = await asyncio.to_thread(_open_snapshot, self._path)
        except sqlite3.Error as error:
            _logger.warning(_LACKING, error)

    def start(self) -> None:
        """Count runs since the last stored minute, in a thread."""
        if self._snapshot is None:
            self._is_counted.set()
        else:
            self._counting = asyncio.get_running_loop().create_task(self._count(self._snapshot))

    async def close(self) -> None:
        if self._snapshot is not None:
            self._snapshot.interrupt()
        if self._counting is not None:
            await self._counting
        elif self._snapshot is not None:
            self._snapshot.close()
        self._is_counted.set()

    async def _count(self, connection: sqlite3.Connection) -> None:
        latest = self._open_from - DAY
        try:
            counted = await asyncio.to_thread(_read_snapshot, connection, latest)
        except sqlite3.Error as error:
            _logger.warning(_LACKING, error)
        else:
            self._add(*counted)
        finally:
            self._snapshot = None
            connection.close()
            self._is_counted.set()

    def _add(self, since: int, counts: Counts, live: dict[str, int]) -> None:
        """Add the counts from before the first commit, from the minute ``since`` on."""
        for minute, functions in counts.items():
            for function_id, numbers in functions.items():
                for place, number in enumerate(numbers):
                    add_count(self._counts, minute, function_id, place, number)
        self._live.update(live)
        self._stored_until = since
        self._store_at = min(self._counts, default=since) * MINUTE + MINUTE + _SETTLE_MILLISECONDS
        if (now := self._clock.now()) >= self._store_at:
            self._store(now)

    # after commits

    def on_commit(self, changes: list[RunChange], group: Group) -> None:
        for change in changes:
            if change.kind is UpdateKind.RETRYING:
                if len(self.retrying) < _MOST_RETRYING:
                    self.retrying.add(change.run.id)
            elif self.retrying and change.kind is not UpdateKind.UNREACHED:
                self.retrying.discard(change.run.id)
            place = _PLACES.get(change.kind)
            if place is None:
                if change.kind is UpdateKind.UNREACHED or self.unreached_apps:
                    self._note_app(change)
                continue
            minute, run = max(change.at // MINUTE, self._open_from), change.run
            functions = self._counts.get(minute)
            if functions is None:
                functions = self._counts[minute] = {}
            numbers = functions.get(run.function_id)
            if numbers is None:
                numbers = functions[run.function_id] = [0] * len(COLUMNS)
            numbers[place] += 1
            if place == CREATED:
                self._live[run.function_id] += 1
            elif change.began is None:
                numbers[CREATED] += 1  # The run ended when it was created.
            else:
                self._live[run.function_id] -= 1
            if self.unreached_apps:
                self._note_app(change)
            if change.at >= self._store_at:
                self._store(change.at)

    def _note_app(self, change: RunChange) -> None:
        """Record that a call did not reach its app, or that the app has answered one."""
        app_id = change.run.app_id
        if change.kind is UpdateKind.UNREACHED:
            before = self.unreached_apps.get(app_id)
            if before is not None or len(self.unreached_apps) < _MOST_APPS:
                since, count = (change.at, 0) if before is None else (before.since, before.count)
                self.unreached_apps[app_id] = UnreachedApp(since, change.error or "", count + 1)
        elif change.kind in _ANSWERED or change.op is Opcode.STEP_RUN:
            self.unreached_apps.pop(app_id, None)

    def _store(self, now: int) -> None:
        """Store the counts of the complete minutes."""
        until = (now - _SETTLE_MILLISECONDS) // MINUTE
        self._store_at, self._open_from = _NEVER, until
        counts = {minute: self._counts[minute] for minute in self._counts if self._stored_until <= minute < until}
        joins = until // QUARTER != self._joined_at

        def store(connection: sqlite3.Connection) -> None:
            put_counts(connection, counts, until)
            if joins:
                join_counts(connection, until)

        try:
            stored = self._transactions.transact(lambda transaction: store(transaction.connection))
        except EngineClosedError:
            return
        stored.add_done_callback(lambda future: self._stored(future, until))

    def _stored(self, future: asyncio.Future[None], until: int) -> None:
        if not future.cancelled() and future.exception() is None:
            # A reader may have read the earlier state of the database.
            for minute in [minute for minute in self._counts if minute < self._stored_until]:
                del self._counts[minute]
            self._stored_until = until
            self._joined_at = until // QUARTER
        elif not future.cancelled() and not isinstance(future.exception(), EngineClosedError):
            _logger.warning("the counts of runs could not be stored: %s", future.exception())
        self._store_at = (until + 1) * MINUTE + _SETTLE_MILLISECONDS

    # reading

    async def live(self) -> Counter[str]:
        """Numbers of runs that have not ended, by function."""
        await self._is_counted.wait()
        return +self._live

    async def counts(
        self, reader: Reader, since: int, until: int, interval: int, function_id: str | None = None
    ) -> dict[str, dict[int, list[int]]]:
        """Counts of the minutes ``[since, until)``, by function and interval.

        The first minute of an interval identifies it.
        """
        await self._is_counted.wait()

        def read(connection: sqlite3.Connection) -> tuple[int, list[tuple[int, str, list[int]]]]:
            stored = counted_until(connection)
            return stored or 0, list(stored_counts(connection, since, until, interval, function_id))

        stored, rows = await reader.read(read)
        counts: dict[str, dict[int, list[int]]] = {}
        for minute, found, numbers in (*rows, *self._unstored(stored, since, until, interval)):
            if function_id in (None, found):
                into = counts.setdefault(found, {}).setdefault(minute, [0] * len(numbers))
                for place, number in enumerate(numbers):
                    into[place] += number
        return counts

    def _unstored(self, stored: int, since: int, until: int, interval: int) -> Iterator[tuple[int, str, Sequence[int]]]:
        for minute, functions in self._counts.items():
            if max(stored, since) <= minute < until:
                first = since + (minute - since) // interval * interval
                yield from ((first, function_id, numbers) for function_id, numbers in functions.items())


def _open_snapshot(path: Path) -> sqlite3.Connection:
    connection = connect_reader(path)
    connection.execute("BEGIN")
    counted_until(connection)  # The first read defines the transaction's snapshot.
    return connection


def _read_snapshot(connection: sqlite3.Connection, latest: int) -> tuple[int, Counts, dict[str, int]]:
    """The first minute that is not stored, the counts from then on, and live runs."""
    since = max(counted_until(connection) or 0, latest)
    return since, count_runs(connection, since), count_live(connection)
