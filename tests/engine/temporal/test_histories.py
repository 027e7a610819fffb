"""Histories of released versions replay: a changed machine or workflow continues the runs of the version before."""

from pathlib import Path

import msgspec
import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.runs import run_workflow
from durably.engine.temporal.workers import WORKFLOWS

FILES = sorted(Path(__file__).with_name("histories").glob("*/*.json"))


def replayer() -> Replayer:
    return Replayer(workflows=WORKFLOWS, data_converter=DATA_CONVERTER, workflow_runner=UnsandboxedWorkflowRunner())


def read(path: Path) -> WorkflowHistory:
    text = path.read_text()
    attributes = msgspec.json.decode(text)["events"][0]["workflowExecutionStartedEventAttributes"]
    return WorkflowHistory.from_json(attributes["workflowId"], text)


async def test_histories_of_released_versions_replay() -> None:
    assert {path.stem.partition("-")[2] for path in FILES} >= {"run", "wait", "topic", "function", "app"}
    for path in FILES:
        result = await replayer().replay_workflow(read(path), raise_on_replay_failure=False)
        assert result.replay_failure is None, f"{path.parent.name}/{path.name}: {result.replay_failure}"


async def test_a_changed_workflow_does_not_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The histories detect a change: a workflow that ends runs without their events."""
    monkeypatch.setattr(run_workflow, "run_end_events", lambda result, triggers: [])
    (path, *_) = [path for path in FILES if path.stem.endswith("-run")]
    result = await replayer().replay_workflow(read(path), raise_on_replay_failure=False)
    assert isinstance(result.replay_failure, NondeterminismError)
