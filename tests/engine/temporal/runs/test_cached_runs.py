"""The memory of a process's runs is limited by the size of their contents, and not only by their number."""

import gc

import pytest

from durably.engine.temporal import workers
from durably.engine.temporal.runs.contents import CONTENTS, RunContent

from ....temporal.dev_server import DevServer
from ....waiting import async_eventually
from ...small_app import Steps
from ..routed_app import RoutedApp, data_of, routed_app

OUTPUT_BYTES = 1_000_000
RUNS = 8
MOST = 3 * OUTPUT_BYTES


async def test_runs_that_were_used_least_recently_leave_the_memory_and_continue(
    server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.CachedRuns.__init__, "__defaults__", (MOST,))
    monkeypatch.setattr(workers, "IDLE_SECONDS", 0.5)
    async with routed_app(server.address) as app:
        waits(app)
        await app.sync()
        gc.disable()  # The memory is free without it, which may run much later.
        try:
            receipts = [await app.send("go", n=number) for number in range(RUNS)]
            await app.wait_for_calls(3 * RUNS)

            async def is_bounded_after_use() -> bool:
                await app.run_to_end("brief", "brief")
                return is_bounded()

            await async_eventually(is_bounded_after_use, "the contents in memory are limited")
        finally:
            gc.enable()
        await app.send("next")
        results = [await app.result(app.run_id(receipt, "waits")) for receipt in receipts]
    assert results == [OUTPUT_BYTES + number for number in range(RUNS)]


def waits(app: RoutedApp) -> None:
    @app.function("waits", event=app.event("go"))
    def waits(steps: Steps) -> object:
        output = steps.run("large", lambda: "x" * OUTPUT_BYTES)
        steps.wait_registered("next", app.event("next"))
        return len(output) + data_of(steps)["n"]

    @app.function("brief", event=app.event("brief"))
    def brief(steps: Steps) -> object:
        return None


def is_bounded() -> bool:
    CONTENTS.clear()
    # Not isinstance: it would ask the proxies of Temporal's sandbox.
    contents = (each for each in gc.get_objects() if type(each) is RunContent)
    return sum(sum(len(memo) for _, memo in each.memos) for each in contents) <= MOST
