"""Statements that delete finished runs and unused events."""

import sqlite3
from collections.abc import Iterable

import msgspec

from durably.protocol.opcodes import Opcode

_IS_UNUSED = (
    "NOT EXISTS (SELECT 1 FROM runs WHERE event_key = events.key) "
    "AND NOT EXISTS (SELECT 1 FROM run_events WHERE event_key = events.key) "
    "AND NOT EXISTS (SELECT 1 FROM held_events WHERE event_key = events.key) "
    f"AND NOT EXISTS (SELECT 1 FROM waits WHERE op = '{Opcode.INVOKE_FUNCTION}' AND topic = events.id)"
)
_LISTED = "(SELECT value FROM json_each(?))"


class Cutoff(msgspec.Struct, frozen=True):
    """Runs that ended, and events that were received, before these times go. Milliseconds since the epoch."""

    runs: int
    events: int


class PurgeStore:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def purge_runs(self, cutoff: Cutoff, limit: int) -> int:
        """Remove at most so many runs, their memos, and events that nothing else needs; how many runs there were."""
        rows = self._connection.execute(
            "SELECT key, event_key FROM runs WHERE ended_at < ? ORDER BY ended_at LIMIT ?", (cutoff.runs, limit)
        ).fetchall()
        if not rows:
            return 0
        run_keys = _listed(run_key for run_key, _ in rows)
        self._connection.execute(f"DELETE FROM failed_attempts WHERE run_key IN {_LISTED}", (run_keys,))
        self._connection.execute(f"DELETE FROM memos WHERE run_key IN {_LISTED}", (run_keys,))
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
        """Look at so many of the events that follow the one of the key ``after``, and remove those that no run needs.
        The key of the last; ``None`` where those that follow are younger, or there are none."""
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
