"""Functions that start each other endlessly: stopped at a depth, and cancelled by bulk cancellations."""

from pathlib import Path

import msgspec

from durably.engine.core.run_state import (
    CHAIN_PERIOD,
    explain_runaway,
    origin_of,
)
from durably.engine.model.runs import RunStatus
from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.events import Event

from ...conftest import QUICK, ShiftedClock, ended, opened, output, run_to_end, until
from ...small_app import SmallApp, Steps

SHALLOW = msgspec.structs.replace(QUICK, max_depth=3)


async def send_from(engine: SqliteEngine, run_id: str | None, name: str) -> str:
    """Send an event from a run, wait for the end of the run that it starts, and return its id."""
    (event_id,) = await engine.send_events([Event(name=name)], sender=run_id)
    (run,) = await engine.event_runs(event_id)
    await ended(engine, run.id)
    return run.id


async def test_a_function_that_invokes_itself_is_stopped_and_the_chain_named(path: Path, app: SmallApp) -> None:
    @app.function("self", retries=0)
    def invokes_itself(steps: Steps) -> object:
        return steps.invoke("again", "app-self")

    async with opened(path, SHALLOW) as engine:
        await engine.sync_app(app.sync_request())
        assert (await run_to_end(engine, "self")).status == RunStatus.FAILED
        runs = await engine.list_runs()
        assert len(runs) == 4
        (step,) = await engine.run_steps(runs[0].id)
        assert step.error is not None
        assert step.error.name == "RunawayError"
        assert step.error.message is not None
        assert all(named in step.error.message for named in ("(app-self → app-self → ", "max_depth"))


async def test_functions_that_invoke_each_other_are_stopped(path: Path, app: SmallApp) -> None:
    @app.function("ping", retries=0)
    def ping(steps: Steps) -> object:
        return steps.invoke("pong", "app-pong")

    @app.function("pong", retries=0)
    def pong(steps: Steps) -> object:
        return steps.invoke("ping", "app-ping")

    async with opened(path, SHALLOW) as engine:
        await engine.sync_app(app.sync_request())
        assert (
            "app-ping → app-pong → app-ping → app-pong → app-ping"
            in output(await run_to_end(engine, "ping"))["message"]
        )
        assert len(await engine.list_runs()) == 4


async def test_recursion_up_to_the_depth_continues(path: Path, app: SmallApp) -> None:
    @app.function("count", retries=0)
    def count(steps: Steps) -> object:
        left = steps.event.data.get("left", 3)
        return 1 + steps.invoke("rest", "app-count", {"left": left - 1}) if left else 1

    async with opened(path, SHALLOW) as engine:
        await engine.sync_app(app.sync_request())
        assert output(await run_to_end(engine, "count")) == 4


async def test_chain_of_events_ends_with_a_failed_run_that_is_reported(path: Path, app: SmallApp) -> None:
    failures = []

    @app.function("loop")
    def loop(steps: Steps) -> object:
        return None

    @app.function("failure", triggers=[{"event": "inngest/function.failed"}])
    def failure(steps: Steps) -> object:
        failures.append(steps.event.data["error"]["name"])

    async with opened(path, msgspec.structs.replace(QUICK, max_depth=1)) as engine:
        await engine.sync_app(app.sync_request())
        run_id = None
        for _ in range(11):
            run_id = await send_from(engine, run_id, "loop")
        assert failures == []
        refused = await engine.get_run(await send_from(engine, run_id, "loop"))
        assert refused is not None
        assert refused.status == RunStatus.FAILED
        assert output(refused)["name"] == "RunawayError"
        assert "… → app-loop → app-loop" in output(refused)["message"]

        async def is_told() -> bool:
            return failures == ["RunawayError"]

        await until(engine, is_told)
        assert len(app.calls) == 12
        # A person may rerun it anyway.
        again = await ended(engine, await engine.rerun(refused.id))
        assert again.status == RunStatus.COMPLETED
        assert await send_from(engine, again.id, "loop")


async def test_long_chain_over_time_is_not_a_runaway(path: Path, app: SmallApp) -> None:
    @app.function("daily")
    def daily(steps: Steps) -> object:
        return None

    clock = ShiftedClock()
    async with opened(path, msgspec.structs.replace(QUICK, max_depth=1, clock=clock)) as engine:
        await engine.sync_app(app.sync_request())
        run_id = None
        for _ in range(25):
            run_id = await send_from(engine, run_id, "daily")
            clock.offset += CHAIN_PERIOD // 5
        run = await engine.get_run(run_id or "")
        assert run is not None
        assert run.status == RunStatus.COMPLETED


def test_invocations_nest_for_good_and_chains_for_an_hour() -> None:
    origin = None
    for depth in range(1, 5):
        origin = origin_of(1, origin, depth * CHAIN_PERIOD * 2, is_invocation=True)
        assert (origin.depth, origin.chain) == (depth, 1)
    assert explain_runaway(origin, 3, is_run_end=False) is not None
    assert explain_runaway(origin, 4, is_run_end=False) is None
    assert origin_of(1, origin, 9 * CHAIN_PERIOD).depth == 0
