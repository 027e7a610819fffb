"""Events and memos of runs in this process, for the calls that it makes.

Inputs of activities never contain these bytes. The worker that executes a run's workflow fills the cache. A process
that makes a call without them reads them from the workflow, page by page.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from weakref import WeakValueDictionary
from zlib import crc32

from durably.engine.temporal.messages import MemoRecord

MAX_PAGE_BYTES = 1024 * 1024
"""The size of a page of memos. A payload of Temporal has at most 2 MB."""
MAX_CACHE_BYTES = 256 * 1024 * 1024
_RUN_BYTES, _MEMO_BYTES = 600, 230
"""Memory of a run and of a memo in the cache, in addition to their JSON. Most are small."""


class RunContent:
    """The events of a run as JSON, and its memos by hashed step id, in order.

    A process may have memos that were never committed, or in another order, if it executed a workflow task whose result
    did not reach the server. So the first memos are identified by their number and their digest.

    ``step_input`` is the input that a user gave a step of a rerun: see ``CallData``. ``size`` is the approximate memory
    in bytes.
    """

    __slots__ = ("_digests", "events", "memos", "size", "step_input")

    def __init__(self, events: Sequence[bytes], step_input: tuple[str, bytes] | None = None) -> None:
        self.events = events
        self.step_input = step_input
        self.memos: list[tuple[str, bytes]] = []
        self.size = _RUN_BYTES + sum(map(len, events))
        self._digests = [0]

    def add(self, step_id: str, memo: bytes) -> None:
        self._digests.append(crc32(memo, crc32(step_id.encode(), self._digests[-1])))
        self.memos.append((step_id, memo))
        self.size += _MEMO_BYTES + len(memo)

    def add_all(self, memos: Iterable[MemoRecord]) -> None:
        for each in memos:
            self.add(each.step_id, bytes(each.memo))

    @property
    def digest(self) -> int:
        return self._digests[-1]

    def begins_with(self, count: int, digest: int) -> bool:
        """Whether the first ``count`` memos have this digest."""
        return count <= len(self.memos) and self._digests[count] == digest

    def page(self, after: int, until: int) -> int:
        """The end of a page of memos that begins at ``after``, at most ``until``."""
        size, end = 0, after
        until = min(until, len(self.memos))
        while end < until and (end == after or size + len(self.memos[end][1]) <= MAX_PAGE_BYTES):
            size += len(self.memos[end][1])
            end += 1
        return end

    def copy(self) -> "RunContent":
        """The same content. Another thread may add to the copy."""
        copied = RunContent(self.events, self.step_input)
        copied.memos, copied._digests = [*self.memos], [*self._digests]
        copied.size = self.size
        return copied


class RunContents:
    """The contents of the runs that this process used last.

    The key is Temporal's run id, which a reset changes. Workflows and calls use this in several threads.
    """

    def __init__(self, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._by_run: OrderedDict[str, tuple[RunContent, int]] = OrderedDict()
        self._bytes = 0

    def put(self, key: str, content: RunContent) -> None:
        with self._lock:
            self._drop(key)
            self._by_run[key] = content, content.size
            self._bytes += content.size
            while self._bytes > self._max_bytes and len(self._by_run) > 1:
                self._drop(next(iter(self._by_run)))

    def find(self, key: str) -> RunContent | None:
        with self._lock:
            found = self._by_run.get(key)
            if found is None:
                return None
            self._by_run.move_to_end(key)
            return found[0]

    def forget(self, key: str) -> None:
        with self._lock:
            self._drop(key)

    def clear(self) -> None:
        """Remove all contents. Tests use it to simulate a new process."""
        with self._lock:
            self._by_run.clear()
            self._bytes = 0

    def _drop(self, key: str) -> None:
        dropped = self._by_run.pop(key, None)
        if dropped is not None:
            self._bytes -= dropped[1]


CONTENTS = RunContents()
"""A module variable, because workflows have no other access to their process."""


class CachedContent:
    """The content of a workflow in memory.

    The objects of an evicted workflow are in a reference cycle, so Python frees them much later. ``release`` frees
    the content, unless calls use it.
    """

    __slots__ = ("__weakref__", "content")

    def __init__(self, content: RunContent) -> None:
        self.content = content

    def release(self) -> None:
        self.content = RunContent(())


CACHED: WeakValueDictionary[str, CachedContent] = WeakValueDictionary()
"""Contents by Temporal's run id. ``CachedRuns`` limits their size."""
