"""Waiting for changes of all runs on Temporal: all waiters share one request."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from durably.engine.temporal.reports import changes
from durably.engine.temporal.reports.changes import ChangePoll


class Counts:
    """Answers counts of workflows, and counts the requests."""

    def __init__(self) -> None:
        self.running, self.requests = 1, 0
        self.is_third = asyncio.Event()

    async def count_workflows(self, query: str) -> Any:
        self.requests += 1
        if self.requests == 3:
            self.is_third.set()
        await asyncio.sleep(0)
        return SimpleNamespace(groups=[SimpleNamespace(group_values=["Running"], count=self.running)])


async def test_all_waiters_share_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_POLL_SECONDS", 0.05)
    counts = Counts()
    poll = ChangePoll(counts, lists=None)  # type: ignore[arg-type]
    found = await asyncio.gather(*(poll.wait(None, None) for _ in range(50)))
    assert counts.requests == 1
    [position] = {each.position for each in found}
    waiting = [asyncio.create_task(poll.wait(position, None)) for _ in range(50)]
    await counts.is_third.wait()
    counts.running = 2
    before = counts.requests
    later = {each.position for each in await asyncio.gather(*waiting)}
    assert later.isdisjoint({position})
    assert len(later) == 1
    assert counts.requests <= before + 2
