"""Replay of workflow histories against the app's code.

It finds changes that running workflows do not survive. ``durably temporal replay``, Django's and Flask's commands, and
``durably.testing.temporal.replay_histories`` use it.
"""

from .histories import (
    HistoryError,
    HistoryQuery,
    StoredHistory,
    fetch_histories,
    read_histories,
    save_history,
)
from .replayer import HistoryReplayer, ReplayOutcome, ReplayResult, TypeReport, replay_all

__all__ = [
    "HistoryError",
    "HistoryQuery",
    "HistoryReplayer",
    "ReplayOutcome",
    "ReplayResult",
    "StoredHistory",
    "TypeReport",
    "fetch_histories",
    "read_histories",
    "replay_all",
    "save_history",
]
