"""Events and memos of runs in this process, for the calls that it makes.

The bytes never pass through the inputs of activities. The worker that executes a run's workflow fills the cache; a
process that makes a call without having them asks the workflow, page by page.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from zlib import crc32

from .messages import MemoRecord

MAX_PAGE_BYTES = 1024 * 1024
"""The size of a page of memos. A message of Temporal has at most 4 MB."""
_MAX_CACHE_BYTES = 256 * 1024 * 1024


class RunContent:
    """The events of a run as JSON, and its memos by hashed step id, in their order.

    A process may have memos that were never committed, or in another order: it executed a workflow task whose result
    did not reach the server. So the first memos are known by their number and their digest.
    """

    __slots__ = ("_digests", "events", "memos", "size")

    def __init__(self, events: Sequence[bytes]) -> None:
        self.events = events
        self.memos: list[tuple[str, bytes]] = []
        self.size = sum(map(len, events))
        self._digests = [0]

    def add(self, step_id: str, memo: bytes) -> None:
        self.memos.append((step_id, memo))
        self._digests.append(crc32(memo, crc32(step_id.encode(), self._digests[-1])))
        self.size += len(memo)

    def add_all(self, memos: Iterable[MemoRecord]) -> None:
        for each in memos:
            self.add(each.step_id, bytes(each.memo))

    @property
    def digest(self) -> int:
        return self._digests[-1]

    def begins_with(self, count: int, digest: int) -> bool:
        """Whether the first ``count`` memos are those with this digest."""
        return count <= len(self.memos) and self._digests[count] == digest

    def copy(self) -> "RunContent":
        copied = RunContent(self.events)
        copied.memos, copied._digests, copied.size = [*self.memos], [*self._digests], self.size
        return copied

    def page(self, after: int) -> int:
        """The end of a page of memos that begins at ``after``."""
        size, end = 0, after
        while end < len(self.memos) and (end == after or size + len(self.memos[end][1]) <= MAX_PAGE_BYTES):
            size += len(self.memos[end][1])
            end += 1
        return end


class RunContents:
    """The contents of the runs that this process used last."""

    def __init__(self) -> None:
        self._by_run: OrderedDict[str, RunContent] = OrderedDict()

    def put(self, run_id: str, content: RunContent) -> None:
        is_new = run_id not in self._by_run
        self._by_run[run_id] = content
        self._by_run.move_to_end(run_id)
        while is_new and len(self._by_run) > 1 and sum(each.size for each in self._by_run.values()) > _MAX_CACHE_BYTES:
            self._by_run.popitem(last=False)

    def find(self, run_id: str) -> RunContent | None:
        content = self._by_run.get(run_id)
        if content is not None:
            self._by_run.move_to_end(run_id)
        return content

    def forget(self, run_id: str) -> None:
        self._by_run.pop(run_id, None)


CONTENTS = RunContents()
"""Workflows have no other access to their process than a module."""
