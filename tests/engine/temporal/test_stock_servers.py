"""Stock projects with ``TemporalEngine`` under common servers: runs continue after the end of their process."""

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from temporalio.client import Client

from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.engine import WorkflowEngine

from ...embedded.stock import Server, code_of, make_project, running
from ...temporal.dev_server import DevServer
from ...waiting import eventually

FUNCTIONS = """
import asyncio
import datetime
import os
import pathlib

import durably

{client}

def note(ctx, what):
    print(ctx.run_id, what, os.getpid(), flush=True)


@client.create_function(fn_id="greet", trigger=durably.TriggerEvent(event="shop/visitor.came"))
async def greet(ctx: durably.Context) -> None:
    await ctx.step.run("charge", note, ctx, "charged by")  # a sync step
    await ctx.step.sleep("pause", datetime.timedelta(seconds=1))
    answer = await ctx.step.wait_for_event(
        "answer", event="shop/visitor.answered", timeout=datetime.timedelta(minutes=5)
    )
    assert answer is not None

    async def hold() -> None:
        note(ctx, "held by")
        if not pathlib.Path({released!r}).exists():
            await asyncio.sleep(300)

    await ctx.step.run("hold", hold)
    note(ctx, "completed by")
"""
SERVERS = [
    ("FastAPI", "uvicorn main:app --port {port} --workers 2"),
    ("Flask", "gunicorn main:app -b 127.0.0.1:{port} -w 2 --preload"),
    ("Flask", "gunicorn main:app -b 127.0.0.1:{port} -w 2 -k gthread --threads 4"),
    ("Flask", "flask --app main run --port {port}"),
    ("Django", "gunicorn myproject.wsgi -b 127.0.0.1:{port} -w 2"),
    ("Django", "gunicorn myproject.wsgi -b 127.0.0.1:{port} -w 2 --preload"),
    ("Django", "uvicorn myproject.asgi:application --port {port}"),
    ("Django", "python manage.py runserver {port}"),
    ("Tornado", "python main.py {port}"),
]
SEVERAL_WORKERS = [case for case in SERVERS if " 2" in case[1]]


def cases(servers: list[tuple[str, str]], quick: tuple[str, str] | None = None) -> list[Any]:
    """Parameters of a test. All but the quick one are tests of `make soak`."""
    return [pytest.param(*case, id=" ".join(case), marks=[] if case == quick else pytest.mark.soak) for case in servers]


class Project:
    """The project of a framework, whose function waits for an answer and then for its release."""

    def __init__(self, framework: str, directory: Path, address: str) -> None:
        self.directory = directory
        self.address = address
        self._released = directory / "released"
        client = code_of("run-on-temporal.md", "# In the processes of your app")
        assert "localhost:7233" in client
        durable = FUNCTIONS.format(client=client.replace("localhost:7233", address), released=str(self._released))
        make_project(framework, directory, durable=durable, is_installed_app=framework == "Django")

    def release(self) -> None:
        self._released.touch()

    def noted(self, what: str) -> list[int]:
        """The processes in which runs have noted something."""
        return [int(process) for _, process in self._notes(what)]

    def was_charged_once(self) -> bool:
        runs = [run for run, _ in self._notes("charged by")]
        return len(runs) == len(set(runs)) > 0

    def _notes(self, what: str) -> list[tuple[str, str]]:
        log = self.directory / "log"
        return re.findall(rf"(\w+) {what} (\d+)", log.read_text()) if log.exists() else []

    def wait_noted(self, what: str) -> int:
        return eventually(lambda: self.noted(what), f"{what}\n{(self.directory / 'log').read_text()[-5000:]}")[-1]

    def hold(self, server: Server) -> int:
        """Start a run. Returns the process that executes it."""
        server.send()
        self.wait_noted("charged by")
        eventually(lambda: asyncio.run(self._answer()) or self.noted("held by"), f"the answer arrives\n{server.log()}")
        return self.wait_noted("held by")

    async def _answer(self) -> None:
        """Answer. An answer before the run waits for it is lost."""
        temporal = await Client.connect(self.address, data_converter=DATA_CONVERTER)
        body = msgspec.json.encode({"name": "shop/visitor.answered", "data": {}})
        await WorkflowEngine(temporal, EngineSettings()).receive_events(body)


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "command"), cases(SERVERS, quick=SERVERS[1]))
def test_run_continues_after_a_restart(framework: str, command: str, tmp_path: Path, server: DevServer) -> None:
    project = Project(framework, tmp_path, server.address)
    with running(command, tmp_path) as web:
        project.hold(web)
    project.release()
    with running(command, tmp_path):
        project.wait_noted("completed by")
    assert project.was_charged_once()


@pytest.mark.parametrize(("framework", "command"), cases(SEVERAL_WORKERS))
def test_run_continues_in_another_worker(framework: str, command: str, tmp_path: Path, server: DevServer) -> None:
    project = Project(framework, tmp_path, server.address)
    with running(command, tmp_path) as web:
        worker = project.hold(web)
        project.release()
        os.kill(worker, signal.SIGTERM)
        assert project.wait_noted("completed by") != worker
    assert project.was_charged_once()
