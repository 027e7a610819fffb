"""Events and memos of runs in this process, for the calls that it makes.

The bytes never pass through the inputs of activities. The worker that executes a run's workflow fills the cache; a
process that makes a call without having them asks the workflow, page by page.
"""

from collections import OrderedDict
from collections.abc import Sequence

MAX_PAGE_BYTES = 1024 * 1024
"""The size of a page of memos. A message of Temporal has at most 4 MB."""
_MAX_CACHE_BYTES = 256 * 1024 * 1024


class RunContent:
    """The events of a run as JSON, and its memos by hashed step id, in their order."""

    __slots__ = ("events", "memos", "size")

    def __init__(self, events: Sequence[bytes]) -> None:
        self.events = events
        self.memos: list[tuple[str, bytes]] = []
        self.size = sum(map(len, events))

    def add(self, step_id: str, memo: bytes) -> None:
        self.memos.append((step_id, memo))
        self.size += len(memo)

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
        self._by_run[run_id] = content
        self._by_run.move_to_end(run_id)
        while len(self._by_run) > 1 and sum(each.size for each in self._by_run.values()) > _MAX_CACHE_BYTES:
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
