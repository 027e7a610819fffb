"""Deletes finished runs and unused events after the retention period."""

import asyncio
import datetime as dt
import sqlite3
from collections.abc import Iterable

import msgspec

from durably.engine.model.settings import Clock, Timer
from durably.engine.sqlite.writer import Transactions
from durably.protocol.engine_errors import DatabaseCorruptError, DatabaseLostError, EngineClosedError
from durably.protocol.limits import IDEMPOTENCY_PERIOD
from durably.protocol.opcodes import Opcode
from durably.protocol.text import get_logger

_RUNS_AT_ONCE = 100
_EVENTS_AT_ONCE = 500
_SHORTEST, _LONGEST = dt.timedelta(seconds=1), dt.timedelta(minutes=10)
_MILLISECOND = dt.timedelta(milliseconds=1)

_logger = get_logger("durably.engine")

_IS_UNUSED = (
    "NOT EXISTS (SELECT 1 FROM runs WHERE event_key = events.key) "
    "AND NOT EXISTS (SELECT 1 FROM run_events WHERE event_key = events.key) "
    "AND NOT EXISTS (SELECT 1 FROM pending_events WHERE event_key = events.key) "
    f"AND NOT EXISTS (SELECT 1 FROM waits WHERE op = '{Opcode.INVOKE_FUNCTION}' AND topic = events.id)"
)
_LISTED = "(SELECT value FROM json_each(?))"


class Cutoff(msgspec.Struct, frozen=True):
    """The times before which runs and events are removed.

    ``runs`` is compared with a run's end, ``events`` with an event's receipt. Both are milliseconds since the epoch.
    """

    runs: int
    events: int


class PurgeStore:
    """Statements that delete finished runs and unused events."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def purge_runs(self, cutoff: Cutoff, limit: int) -> int:
        """Remove at most ``limit`` runs and their memos. Returns the number of runs.

        Also removes their events, if no other run needs them.
        """
        rows = self._connection.execute(
            "SELECT key, event_key FROM runs WHERE ended_at < ? ORDER BY ended_at LIMIT ?", (cutoff.runs, limit)
        ).fetchall()
        if not rows:
            return 0
        run_keys = _listed(run_key for run_key, _ in rows)
        self._connection.execute(f"DELETE FROM failed_attempts WHERE run_key IN {_LISTED}", (run_keys,))
        self._connection.execute(f"DELETE FROM memos WHERE run_key IN {_LISTED}", (run_keys,))
        self._connection.execute(f"DELETE FROM step_usage WHERE run_key IN {_LISTED}", (run_keys,))
        self._connection.execute(f"DELETE FROM run_logs WHERE run_key IN {_LISTED}", (run_keys,))
        self._connection.execute(f"DELETE FROM run_progress WHERE run_key IN {_LISTED}", (run_keys,))
        self._connection.execute(f"DELETE FROM run_metadata WHERE run_key IN {_LISTED}", (run_keys,))
        self._connection.execute(f"DELETE FROM runs WHERE key IN {_LISTED}", (run_keys,))
        batched = self._connection.execute(
            f"DELETE FROM run_events WHERE run_key IN {_LISTED} RETURNING event_key", (run_keys,)
        ).fetchall()
        event_keys = _listed({event_key for _, event_key in rows} | {event_key for (event_key,) in batched})
        self._connection.execute(
            f"DELETE FROM events WHERE key IN {_LISTED} AND received_at < ? AND {_IS_UNUSED}",
            (event_keys, cutoff.events),
        )
        return len(rows)

    def purge_events(self, cutoff: Cutoff, after: int, limit: int) -> int | None:
        """Remove events that no run needs.

        Checks ``limit`` events after the key ``after``. Returns the key of the last; ``None`` if all old events are
        checked.
        """
        rows = self._connection.execute(
            "SELECT key, received_at FROM events WHERE key > ? ORDER BY key LIMIT ?", (after, limit)
        ).fetchall()
        old: list[int] = [key for key, received_at in rows if received_at < cutoff.events]
        if not old:
            return None
        self._connection.execute(f"DELETE FROM events WHERE key IN {_LISTED} AND {_IS_UNUSED}", (_listed(old),))
        return old[-1]


def _listed(keys: Iterable[int]) -> str:
    return msgspec.json.encode(list(keys)).decode()


class Retention:
    """Purges runs that ended longer than ``age`` ago, and events that no run needs.

    Events are kept for at least 24 hours, so that repeated events are recognised.
    """

    def __init__(self, store: PurgeStore, transactions: Transactions, clock: Clock, age: dt.timedelta) -> None:
        self._store = store
        self._transactions = transactions
        self._clock = clock
        self._age = age // _MILLISECOND
        self._event_age = max(age, IDEMPOTENCY_PERIOD) // _MILLISECOND
        self._interval = min(max(age / 20, _SHORTEST), _LONGEST) // _MILLISECOND
        self._seen_event = 0
        self._due = clock.now()
        self._timer: Timer | None = None
        self._purge: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Purge now, and again after each interval."""
        now = self._clock.now()
        self._due = min(self._due, now + self._interval)  # The clock may have been set back.
        if now >= self._due:
            self._due = now + self._interval
            self._clock.begin_work()
            self._purge = asyncio.get_running_loop().create_task(self._run(now))
            self._purge.add_done_callback(self._finished)
        else:
            self._timer = self._clock.call_at(self._due, self.start)

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._purge is not None:
            self._purge.cancel()
            await asyncio.gather(self._purge, return_exceptions=True)

    async def _run(self, now: int) -> None:
        cutoff = Cutoff(runs=now - self._age, events=now - self._event_age)
        while await self._transactions.transact_with_retry(lambda _: self._store.purge_runs(cutoff, _RUNS_AT_ONCE)):
            pass
        while await self._purge_events(cutoff):
            pass

    async def _purge_events(self, cutoff: Cutoff) -> bool:
        """Purge a portion of events. Returns ``False`` at the end."""
        after = self._seen_event
        seen = await self._transactions.transact_with_retry(
            lambda _: self._store.purge_events(cutoff, after, _EVENTS_AT_ONCE)
        )
        self._seen_event = seen or after
        return seen is not None

    def _finished(self, purge: asyncio.Task[None]) -> None:
        self._purge = None
        if not purge.cancelled():
            error = purge.exception()
            if error is not None and not isinstance(
                error, EngineClosedError | DatabaseLostError | DatabaseCorruptError
            ):
                _logger.error("old runs could not be purged: %s", error, exc_info=error)
            self._timer = self._clock.call_at(self._due, self.start)
        self._clock.end_work()
