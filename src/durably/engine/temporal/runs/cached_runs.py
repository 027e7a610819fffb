"""Runs whose workflows a process keeps in memory, and the size of their contents."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from temporalio import workflow

from durably.temporal.compat import Eviction

from .contents import CACHED
from .run_changes import report_eviction

MAX_CACHED_BYTES = 1024 * 1024 * 1024
"""Maximum size of the contents of all workflows in memory. One run has at most 32 MB."""
IDLE_SECONDS = 30.0
"""Seconds without use before an eviction. A run that is evicted during a task, such as during a local activity, waits
until the task times out."""


class CachedRuns:
    """Evicts idle runs if all contents exceed ``max_bytes``.

    It begins with the least recently used one. The next task of an evicted run reads its history again. ``evict`` and
    the methods are called in threads of a worker (see ``CacheObserver``).
    """

    def __init__(self, evict: Callable[[workflow.Info], None], max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._evict = evict
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, tuple[workflow.Info, int, float]] = OrderedDict()
        self._bytes = 0

    def note_activated(self, info: workflow.Info) -> None:
        cached = CACHED.get(info.run_id)
        now = time.monotonic()
        with self._lock:
            self._drop(info.run_id)
            if cached is not None:
                size = cached.content.size
                self._runs[info.run_id] = info, size, now
                self._bytes += size
            evicted = self._take_idle(now - IDLE_SECONDS)
        for each in evicted:
            self._evict(each)

    def _take_idle(self, used_before: float) -> list[workflow.Info]:
        taken = []
        while self._bytes > self._max_bytes:
            info, _, used_at = next(iter(self._runs.values()))
            if used_at > used_before:
                break
            self._drop(info.run_id)
            taken.append(info)
        return taken

    def note_evicted(self, info: workflow.Info, eviction: Eviction) -> None:
        with self._lock:
            self._drop(info.run_id)
        if (cached := CACHED.pop(info.run_id, None)) is not None:
            cached.release()
        report_eviction(info, eviction)

    def _drop(self, run_id: str) -> None:
        dropped = self._runs.pop(run_id, None)
        if dropped is not None:
            self._bytes -= dropped[1]
