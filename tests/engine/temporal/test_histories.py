"""Histories replay: those of released versions, and new ones, so that a changed workflow continues its runs.

``python -m tests.engine.temporal.histories tests/engine/temporal/histories/VERSION`` records those of a version.
"""

from pathlib import Path

import msgspec
import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.runs import run_workflow
from durably.engine.temporal.workers import WORKFLOWS

from .histories.__main__ import record

KINDS = {"run", "wait", "topic", "function", "app"}
FILES = sorted(Path(__file__).with_name("histories").glob("*/*.json"))


def replayer() -> Replayer:
    return Replayer(workflows=WORKFLOWS, data_converter=DATA_CONVERTER, workflow_runner=UnsandboxedWorkflowRunner())


def read(content: bytes) -> WorkflowHistory:
    text = content.decode()
    attributes = msgspec.json.decode(text)["events"][0]["workflowExecutionStartedEventAttributes"]
    return WorkflowHistory.from_json(attributes["workflowId"], text)


@pytest.mark.parametrize("version", sorted({path.parent.name for path in FILES}))
async def test_histories_of_a_released_version_replay(version: str) -> None:
    files = [path for path in FILES if path.parent.name == version]
    assert {path.stem.partition("-")[2] for path in files} >= KINDS
    for path in files:
        result = await replayer().replay_workflow(read(path.read_bytes()), raise_on_replay_failure=False)
        assert result.replay_failure is None, f"{version}/{path.name}: {result.replay_failure}"


@pytest.mark.slow
async def test_recorded_histories_replay_and_detect_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    histories = {name.removesuffix(".json").partition("-")[2]: content for name, content in (await record()).items()}
    assert set(histories) >= KINDS
    for name, content in histories.items():
        result = await replayer().replay_workflow(read(content), raise_on_replay_failure=False)
        assert result.replay_failure is None, f"{name}: {result.replay_failure}"
    monkeypatch.setattr(run_workflow, "run_end_events", lambda result, triggers: [])
    result = await replayer().replay_workflow(read(histories["run"]), raise_on_replay_failure=False)
    assert isinstance(result.replay_failure, NondeterminismError)
