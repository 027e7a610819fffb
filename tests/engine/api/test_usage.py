"""Tokens of models where people and programs see them: reports, the dashboard, the CLI and metrics."""

import html
import re

import click
from aiohttp import web

from durably.cli.run_text import describe_usage
from durably.engine.api.counters import EngineCounters
from durably.engine.api.dashboard.dashboard import Dashboard
from durably.engine.api.metrics import OTHER_MODELS
from durably.engine.model.records import RunRow
from durably.engine.model.runs import FromStep, ModelUsage, RunStatus, UpdateKind
from durably.engine.model.subscriptions import Group, RunChange
from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.opcodes import hash_step_id
from durably.protocol.usage import usage_metadata

from ..conftest import ended, run_to_end
from ..small_app import Branch, SmallApp, Steps, serving
from .dashboard.dashboard_client import page
from .test_metrics import read


async def test_tokens_are_shown_wherever_a_run_or_a_function_is(engine: SqliteEngine, app: SmallApp) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"model": "gpt-5", "usage": {"prompt_tokens": 20, "completion_tokens": 3}})

    async with serving(answer) as url:

        @app.function("agent", retries=1)
        def agent(steps: Steps) -> object:
            def think() -> None:
                if app.executions["think"] == 1:
                    raise ValueError("no")

            used = usage_metadata([ModelUsage("gpt-5", 1200, 100), ModelUsage("<b>", 1, 0)])
            steps.parallel(Branch("think", {"op": "StepRun", "metadata": used}, think))
            steps.options("ask", "AIGateway", url=url, format="openai-chat", body={"model": "gpt"})
            steps.run("other")
            return None

        await engine.sync_app(app.sync_request())
        run = await run_to_end(engine, "agent")
    total = [ModelUsage("<b>", 2, 0), ModelUsage("gpt-5", 2420, 203)]
    assert run.usage == total

    report = await engine.inspect_run(run.id)
    assert report is not None
    assert report.run.usage == total
    assert {step.id: step.usage for step in report.steps} == {
        "think": [ModelUsage("<b>", 2, 0), ModelUsage("gpt-5", 2400, 200)],
        "ask": [ModelUsage("gpt-5", 20, 3)],
        "other": [],
    }
    again = await ended(engine, await engine.rerun(run.id, from_step=FromStep("other")))
    assert again.usage == [], "results of steps that were copied are not paid twice"

    function = await engine.inspect_function("app-agent")
    assert function is not None
    assert function.usage == total

    values = await read(engine)
    assert values["ai_tokens_total{input,agent,gpt-5}"] == 2420
    assert values["ai_tokens_total{output,agent,gpt-5}"] == 203

    dashboard = Dashboard(engine, allow_anonymous=True)
    for path, query, shown in (
        (f"/runs/{run.id}", "", "gpt-5 2,420 in, 203 out"),
        (f"/runs/{run.id}", f"step={hash_step_id('ask')}", "gpt-5 20 in, 3 out"),
        ("/functions/app-agent", "", "gpt-5 2,420 in, 203 out"),
    ):
        text = await page(dashboard, path, query)
        assert "<b>" not in re.findall(r"<dt>.*?Tokens.*?</div>", text)[0]
        assert shown in " ".join(html.unescape(re.sub(r"<[^>]*>", "", text)).split())

    table = describe_usage(report)
    assert table is not None
    lines = [click.unstyle(line).split() for line in table.splitlines()]
    assert ["(run)", "gpt-5", "2,420", "203"] in lines
    assert ["think", "gpt-5", "2,400", "200"] in lines


def test_models_above_the_limit_share_a_label() -> None:
    counters = EngineCounters()
    row = RunRow(1, "01A", "app-f", "app", 1, False, RunStatus.RUNNING, 0, None, None)
    for number in range(20):
        usage = (ModelUsage(f"model-{number}", 1, 2),)
        counters.on_commit([RunChange(UpdateKind.STEP_COMPLETED, 0, row, usage=usage)], Group(1, 0, 0.001))
    (tokens,) = [metric for metric in counters.read() if metric.name == "ai_tokens"]
    values = {sample.labels: sample.value for sample in tokens.samples}
    assert len(values) == 22
    assert values["app-f", OTHER_MODELS, "output"] == 20
    assert values["app-f", "model-9", "input"] == 1
