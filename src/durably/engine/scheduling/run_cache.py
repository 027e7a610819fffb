"""The runs that the writer changed last, so that it need not read them again."""

from collections import OrderedDict

import msgspec

from durably.engine.core.flow.queue_entries import QueueEntry
from durably.engine.core.run_state import RunState
from durably.engine.sqlite.tables.runs import RunRow

from .events import ReceivedEvent

_CAPACITY = 2048
_MOST_TRIGGER_BYTES = 2048
"""Of an event that is kept along with the run that it triggered."""


_MOST_MEMOS = 32
_MOST_MEMO_BYTES = 2048
"""The memos of one run that are kept."""

Memos = tuple[tuple[str, bytes], ...]


class CachedRun(msgspec.Struct, frozen=True, gc=False):
    """``is_moving`` is as stored. ``trigger`` is the event that triggered the run, unless it is large, or one of
    several. ``memos`` are all memos of the run in their order, by hashed step id; ``None`` if they are unknown or
    large."""

    row: RunRow
    state: RunState
    queue_entry: QueueEntry | None
    is_moving: bool
    trigger: ReceivedEvent | None = None
    memos: Memos | None = None


def kept_trigger(trigger: ReceivedEvent) -> ReceivedEvent | None:
    """What is kept of the event that triggered a run."""
    if len(trigger.body) > _MOST_TRIGGER_BYTES:
        return None
    return ReceivedEvent(trigger.id, trigger.name, trigger.body, origin=trigger.origin)


def with_memo(memos: Memos | None, step_id: str, memo: bytes) -> Memos | None:
    """The memos to keep once another is stored."""
    if memos is None or len(memos) == _MOST_MEMOS:
        return None
    if sum(len(kept) for _, kept in memos) + len(memo) > _MOST_MEMO_BYTES:
        return None
    return (*memos, (step_id, memo))


class RunCache:
    def __init__(self) -> None:
        self._by_key: OrderedDict[int, CachedRun] = OrderedDict()
        self._keys: dict[str, int] = {}

    def find(self, run_key: int) -> CachedRun | None:
        return self._by_key.get(run_key)

    def find_key(self, run_id: str) -> int | None:
        return self._keys.get(run_id)

    def put(self, run: CachedRun) -> None:
        self._by_key[run.row.key] = run
        self._by_key.move_to_end(run.row.key)
        self._keys[run.row.id] = run.row.key
        if len(self._by_key) > _CAPACITY:
            _, oldest = self._by_key.popitem(last=False)
            del self._keys[oldest.row.id]

    def forget(self, run_key: int) -> None:
        """Of a run that has ended."""
        cached = self._by_key.pop(run_key, None)
        if cached is not None:
            del self._keys[cached.row.id]

    def clear(self) -> None:
        self._by_key.clear()
        self._keys.clear()
