"""``flask temporal worker``: activities in the app's context, reload, errors."""

import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from durably.temporal import Temporal

from ...cli.conftest import Command, directory, environment, write
from ..dev_server import DevServer
from ..user_projects import change_source, descendants

__all__ = ["directory"]

APP = """
    import flask
    from datetime import timedelta
    from temporalio import activity
    from durably.temporal import Temporal
    from durably.temporal.flask import init_app
    from workflows import GreetingWorkflow

    @activity.defn
    def greet(name: str) -> str:
        return f"{flask.current_app.config['GREETING']} {name}"

    @activity.defn
    async def greet_async(name: str) -> str:
        return f"{flask.current_app.config['GREETING']} {name}, asynchronously"

    temporal = Temporal()
    temporal.add_worker(workflows=[GreetingWorkflow], activities=[greet, greet_async])
    temporal.add_schedule("{queue}-daily", GreetingWorkflow.run, "you", every=timedelta(days=1))

    app = flask.Flask(__name__)
    app.config.update(GREETING="hello", TEMPORAL_ADDRESS="{address}", TEMPORAL_TASK_QUEUE="{queue}")
    init_app(app, temporal)
"""
WORKFLOWS = """
    from datetime import timedelta
    from temporalio import workflow

    @workflow.defn
    class GreetingWorkflow:
        @workflow.run
        async def run(self, name: str) -> list[str]:
            return [
                await workflow.execute_activity(each, name, start_to_close_timeout=timedelta(seconds=10))
                for each in ("greet", "greet_async")
            ]
"""
FLASK = [sys.executable, "-m", "flask"]
Start = Callable[..., Command]


@pytest.fixture
def queue() -> str:
    return f"flask-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def start(directory: Path, server: DevServer, queue: str) -> Iterator[Start]:
    write(directory / "workflows.py", WORKFLOWS)
    write(directory / "app.py", APP.replace("{address}", server.address).replace("{queue}", queue))
    started: list[Command] = []

    def start_(*arguments: str) -> Command:
        started.append(Command(("temporal", *arguments), directory, environment(), FLASK))
        return started[-1]

    yield start_
    for command in started:
        if command.process.poll() is None:
            for pid in descendants(command.process.pid):  # The line of the reloader.
                os.kill(pid, signal.SIGKILL)
        command.stop(signal.SIGKILL)


def greet(temporal: Temporal, queue: str) -> object:
    return temporal.sync.execute_workflow("GreetingWorkflow", "you", id=uuid.uuid4().hex, task_queue=queue)


def test_activities_run_in_the_apps_context(start: Start, temporal: Temporal, queue: str) -> None:
    command = start("worker")
    command.until(f"working on {queue}: GreetingWorkflow; greet, greet_async")
    assert greet(temporal, queue) == ["hello you", "hello you, asynchronously"]
    assert command.stop(signal.SIGTERM) == 0
    assert "Traceback" not in command.output


@pytest.mark.slow
def test_a_change_restarts_it(start: Start, directory: Path, temporal: Temporal, queue: str) -> None:
    command = start("worker", "--reload")
    command.until("working on")
    source = (directory / "app.py").read_text().replace('GREETING="hello"', 'GREETING="good day"')
    end = change_source(command, directory / "app.py", source, "app.py', reloading")
    command.until("working on", after=end)
    assert greet(temporal, queue) == ["good day you", "good day you, asynchronously"]


@pytest.mark.slow
def test_errors_are_one_line(start: Start) -> None:
    command = start("worker", "--task-queue", "none")
    assert command.wait() == 1
    assert 'Error: no worker is declared for the task queue "none"' in command.output
    assert "Traceback" not in command.output


@pytest.mark.slow
def test_command_syncs_schedules(start: Start, queue: str) -> None:
    for expected in ("created", "updated"):
        command = start("sync-schedules")
        assert command.wait() == 0
        assert f"{queue}-daily: {expected}\n" in command.output
