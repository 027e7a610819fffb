"""An engine that stops, or is killed, in the middle of anything, and starts again."""

import asyncio
import datetime as dt
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from durably.engine.model.runs import RunStatus, StepStatus
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.call import CheckpointRequest
from durably.protocol.engine_errors import EngineClosedError, StaleCallError
from durably.protocol.events import Event
from durably.protocol.opcodes import Op, hash_step_id

from ..conftest import QUICK, ended, only_run, opened, output, send, step_is, until
from ..small_app import Raised, SmallApp, Steps, serving


async def test_while_it_sleeps_waits_and_invokes(path: Path, app: SmallApp) -> None:
    @app.function("child", event="nothing")
    def child(steps: Steps) -> object:
        return steps.wait_for_event("go", "go")["data"]["n"]

    @app.function("parent")
    def parent(steps: Steps) -> object:
        steps.run("first", lambda: 1)
        return steps.parallel(
            steps.asking("asleep", "Sleep", duration="300ms"),
            steps.asking("event", "WaitForEvent", event="paid", timeout="1h"),
            steps.asking("signal", "WaitForSignal", signal="launch", timeout="1h"),
            steps.asking("child", "InvokeFunction", function_id="app-child", payload={"data": {}}),
            steps.asking("short", "WaitForEvent", event="never", timeout="300ms"),
        )

    async with opened(path) as engine:
        await engine.sync_app(app.sync_request())
        run_id = await only_run(engine, await send(engine, "parent"))
        await step_is(engine, run_id, "child", StepStatus.WAITING)
    async with opened(path) as engine:
        (child_run,) = await engine.list_runs(function_id="app-child")
        await step_is(engine, child_run.id, "go", StepStatus.WAITING)
        await send(engine, "paid", n=1)
        assert await engine.signal("launch", 2) == run_id
    async with opened(path) as engine:
        await send(engine, "go", n=3)
        run = await ended(engine, run_id)
    asleep, event, signalled, invoked, short = output(run)
    assert (asleep, event["data"], signalled["data"], invoked, short) == (None, {"n": 1}, 2, 3, None)
    assert app.executions["first"] == 1


async def test_while_a_retry_is_due_later(path: Path, app: SmallApp) -> None:
    @app.function("later")
    def later(steps: Steps) -> object:
        if steps.attempt == 0:
            raise Raised("not yet", retry_after="1")
        return steps.attempt

    async with opened(path) as engine:
        await engine.sync_app(app.sync_request())
        run_id = await only_run(engine, await send(engine, "later"))

        async def is_retrying() -> bool:
            return [call.attempt for call in await engine.run_calls(run_id)] == [1]

        await until(engine, is_retrying)
    async with opened(path) as engine:
        (call,) = await engine.run_calls(run_id)
        assert (call.generation, call.in_flight, call.error) == (2, False, "Raised: not yet")
        assert output(await ended(engine, run_id)) == 1


async def test_while_a_call_is_under_way(path: Path, app: SmallApp) -> None:
    """It is made again under a new generation; the old one's answer and checkpoints are stale."""

    @app.function("slow")
    def slow(steps: Steps) -> object:
        return steps.run("a", lambda: 1)

    app.gate.clear()
    async with opened(path) as engine:
        await engine.sync_app(app.sync_request())
        run_id = await only_run(engine, await send(engine, "slow"))
        await app.wait_for_calls(1)
    async with opened(path) as engine:
        await app.wait_for_calls(2)
        assert [call.ctx.generation_id for call in app.calls] == [1, 2]
        assert [call.ctx.attempt for call in app.calls] == [0, 0]
        step = Op(id=hash_step_id("a"), op="StepRun", data=msgspec.Raw(b"1"))
        for stale in (
            CheckpointRequest(generation_id=1, steps=[step]),
            CheckpointRequest(qi_id=app.calls[0].ctx.qi_id, steps=[step]),
        ):
            with pytest.raises(StaleCallError):
                await engine.checkpoint(run_id, stale)
        assert await engine.run_steps(run_id) == []
        await engine.checkpoint(run_id, CheckpointRequest(generation_id=2, steps=[step]))
        assert [step.id for step in await engine.run_steps(run_id)] == [hash_step_id("a")]
        app.gate.set()
        assert output(await ended(engine, run_id)) == 1


async def test_while_a_request_is_under_way_and_its_secrets(path: Path, app: SmallApp) -> None:
    """Request bodies are not stored on disk, so the engine asks the app for them again."""
    asked = asyncio.Event()
    held = asyncio.Event()
    seen: list[str | None] = []

    async def api(request: web.Request) -> web.Response:
        seen.append(request.headers.get("authorization"))
        asked.set()
        if len(seen) == 1:
            await held.wait()
        return web.json_response({"weather": "fine"})

    @app.function("fetching")
    def fetching(steps: Steps) -> object:
        steps.run("before", lambda: 1)
        answer = steps.options("get", "Gateway", url=url, method="GET", headers={"authorization": "Bearer hunter2"})
        return json.loads(answer["body"])

    async with serving(api) as url:
        async with opened(path) as engine:
            await engine.sync_app(app.sync_request())
            run_id = await only_run(engine, await send(engine, "fetching"))
            await asked.wait()
            await step_is(engine, run_id, "get", StepStatus.RUNNING)
        async with opened(path) as engine:
            assert output(await ended(engine, run_id)) == {"weather": "fine"}
        held.set()
    assert seen == ["Bearer hunter2"] * 2
    assert app.executions["before"] == 1
    for file in path.parent.iterdir():
        assert b"hunter2" not in file.read_bytes()


async def test_a_closed_engine_takes_nothing(path: Path) -> None:
    engine = await SqliteEngine.open(path, QUICK)
    await engine.close()
    await engine.close()
    with pytest.raises(EngineClosedError):
        await engine.send_events([Event(name="x")])
    with pytest.raises(EngineClosedError):
        await engine.list_events()


async def test_closing_lets_calls_under_way_finish(path: Path, app: SmallApp) -> None:
    @app.function("slow")
    def slow(steps: Steps) -> object:
        return "done"

    settings: EngineSettings = msgspec.structs.replace(QUICK, close_grace=dt.timedelta(seconds=5))
    app.gate.clear()
    async with opened(path, settings) as engine:
        await engine.sync_app(app.sync_request())
        run_id = await only_run(engine, await send(engine, "slow"))
        await app.wait_for_calls(1)
        asyncio.get_running_loop().call_later(0.05, app.gate.set)
    async with opened(path) as engine:
        run = await engine.get_run(run_id)
        assert run is not None
        assert (run.status, len(app.calls)) == (RunStatus.COMPLETED, 1)


ENGINE = """
import asyncio, sys
from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.events import Event

async def main():
    engine = await SqliteEngine.open(sys.argv[1])
    number = int(sys.argv[2])
    while True:
        events = [Event(name="work", id=f"e{number + n}", data={"n": number + n}) for n in range(3)]
        await engine.send_events(events)
        for event in events:
            print(event.data["n"], flush=True)
        number += 3

asyncio.run(main())
"""


@pytest.mark.parametrize("lives", [4])
async def test_killed_at_any_instant(path: Path, app: SmallApp, lives: int) -> None:
    """Whatever was acknowledged is there; whatever step was committed is not executed again."""
    committed: dict[str, set[int]] = {"a": set(), "b": set()}
    again: list[tuple[str, int]] = []

    @app.function("work")
    def work(steps: Steps) -> object:
        assert steps.event is not None
        n = steps.event.data["n"]
        for step in ("a", "b"):
            if steps.has(step):
                committed[step].add(n)
            elif n in committed[step]:
                again.append((step, n))
        return steps.run("a", lambda: n) + steps.run("b", lambda: n)

    async with opened(path) as engine:
        await engine.sync_app(app.sync_request())
    acknowledged: list[int] = []
    for _ in range(lives):
        acknowledged += await _live_and_die(path, app, start=max(acknowledged, default=-1) + 1)
    async with opened(path) as engine:
        runs = await engine.list_runs(limit=100_000)
        ends = [await ended(engine, run.id) for run in runs]
        outputs = sorted(output(run) for run in ends)
        assert {run.status for run in ends} == {RunStatus.COMPLETED}
    assert len(outputs) == len(set(outputs)), "an event triggered two runs"
    assert {2 * n for n in acknowledged} <= set(outputs), "an acknowledged event is lost"
    assert not again
    assert len(acknowledged) > lives


async def _live_and_die(path: Path, app: SmallApp, *, start: int) -> list[int]:
    """Run an engine in a process of its own, kill it while it is busy, and say what it had acknowledged."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ENGINE, str(path), str(start), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    before = len(app.calls)
    await app.wait_for_calls(before + 25)
    os.kill(process.pid, signal.SIGKILL)
    reported = (await process.stdout.read()).decode().splitlines(keepends=True)
    await process.wait()
    return [int(line) for line in reported if line.endswith("\n")]
