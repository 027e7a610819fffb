"""Fairness between functions: many calls of one function do not delay a call of another."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from durably.engine.model.runs import RunStatus
from durably.protocol.events import Event

from ..conftest import QUICK, ended, only_run, opened, run_to_end
from ..small_app import SmallApp, Steps, serve


@pytest.fixture
async def other_app() -> AsyncIterator[SmallApp]:
    async with serve(SmallApp("other")) as served:
        yield served


async def test_many_calls_of_a_function_do_not_hold_up_anothers(path: Path, app: SmallApp, other_app: SmallApp) -> None:
    @app.function("busy")
    def busy(steps: Steps) -> object:
        return None

    @other_app.function("single")
    def single(steps: Steps) -> object:
        return steps.run("step", lambda: 1)

    app.gate.clear()  # The calls of "busy" do not end.
    async with opened(path, msgspec.structs.replace(QUICK, max_calls=20)) as engine:
        await engine.sync_app(app.sync_request())
        await engine.sync_app(other_app.sync_request())
        await engine.send_events([Event(name="busy")] * 50)
        await app.wait_for_calls(18)
        assert (await run_to_end(engine, "single")).status == RunStatus.COMPLETED
        assert len(app.calls) == 18


async def test_waiting_calls_of_a_function_go_by_its_priority(path: Path, app: SmallApp) -> None:
    @app.function("job", priority={"run": "event.data.priority"})
    def job(steps: Steps) -> object:
        return None

    app.gate.clear()
    async with opened(path, msgspec.structs.replace(QUICK, max_calls=1)) as engine:
        await engine.sync_app(app.sync_request())
        await engine.send_events([Event(name="job", data={"priority": 0})])
        await app.wait_for_calls(1)
        priorities = [0, -600, 600, 60]
        event_ids = await engine.send_events([Event(name="job", data={"priority": wish}) for wish in priorities])
        app.gate.set()
        for event_id in event_ids:
            await ended(engine, await only_run(engine, event_id))
        assert [call.event.data["priority"] for call in app.calls][1:] == [600, 60, 0, -600]
