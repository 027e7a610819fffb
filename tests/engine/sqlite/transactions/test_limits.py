"""Limits of a run's ops: an answer beyond them starts nothing."""

from pathlib import Path

import msgspec

from durably.engine.model.runs import RunStatus

from ...conftest import QUICK, opened, output, run_to_end
from ...small_app import SmallApp, Steps


async def test_a_fan_out_over_the_step_limit_invokes_no_function(path: Path, app: SmallApp) -> None:
    @app.function("parent")
    def parent(steps: Steps) -> object:
        steps.run("first")
        opts = {"function_id": "app-child", "payload": {"data": {}}}
        return len(steps.parallel(*(steps.asking(f"child {n}", "InvokeFunction", **opts) for n in range(10))))

    @app.function("child")
    def child(steps: Steps) -> object:
        return None

    async with opened(path, msgspec.structs.replace(QUICK, max_steps=10)) as engine:
        await engine.sync_app(app.sync_request())
        run = await run_to_end(engine, "parent")
        assert run.status == RunStatus.FAILED
        assert output(run)["name"] == "StepLimitError"
        assert "at most 10 steps" in output(run)["message"]
        assert await engine.list_runs(function_id="app-child") == []
        assert [step.id for step in await engine.run_steps(run.id)] == ["first"]
