"""Test runs of a project: they start no engine and make no database."""

import subprocess
import sys
from pathlib import Path

import pytest

from durably import Client, Embedded, Event
from durably.errors import EngineNotStartedError, SendEventsError

from ..variants import variants
from .stock import make_project

REFUSED = """
def refused(get, durable):
    with pytest.raises(SendEventsError, match="TestEngine"):
        get("/send")
    with pytest.raises(EngineNotStartedError, match="TestEngine"):
        durable.client.engine.list_runs_sync()
    with TestEngine(durable.client, [durable.greet]).sync() as engine:
        get("/send")
        [run] = engine.runs()
        engine.advance(seconds=3)
        run.assert_completed(output="Hello, Ada!")
    assert not list(pathlib.Path(durable.client.engine.path).parent.glob("durably.db*"))
"""
IMPORTS = """
import pathlib, pytest
from durably.errors import EngineNotStartedError, SendEventsError
from durably.testing import TestEngine
"""
FASTAPI = """
from fastapi.testclient import TestClient
import durable, main

def test_it():
    with TestClient(main.app) as browser:
        refused(browser.get, durable)
"""
FLASK = """
import durable, main

def test_it():
    main.app.testing = True
    refused(main.app.test_client().get, durable)
"""
DJANGO = """
from django.test import SimpleTestCase
from greetings import durable

class Tests(SimpleTestCase):
    def test_it(self):
        refused(self.client.get, durable)
"""


@pytest.mark.parametrize(
    ("framework", "test"), variants([("FastAPI", FASTAPI), ("Flask", FLASK), ("Django", DJANGO)], [("Django", DJANGO)])
)
def test_a_test_run_of_a_project_starts_nothing(framework: str, test: str, tmp_path: Path) -> None:
    make_project(framework, tmp_path, is_installed_app=framework == "Django")
    module = tmp_path / "greetings" / "tests.py" if framework == "Django" else tmp_path / "test_app.py"
    module.write_text(IMPORTS + REFUSED + test)
    command = ["manage.py", "test"] if framework == "Django" else ["-m", "pytest", "-q", "test_app.py"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.glob("durably.db*"))


async def test_a_test_runs_a_real_engine_if_it_starts_it(tmp_path: Path) -> None:
    engine = Embedded(tmp_path / "durably.db")
    client = Client(app_id="app", engine=engine)
    with pytest.raises(SendEventsError, match=r"durably\.db.*TestEngine.*start\(\)"):
        await client.send(Event(name="f"))
    async with engine.running():
        assert len(await client.send(Event(name="f"))) == 1
    with pytest.raises(EngineNotStartedError, match="TestEngine"):
        await engine.list_runs()


def test_commands_of_django_start_nothing(tmp_path: Path) -> None:
    make_project("Django", tmp_path, is_installed_app=True)
    for command in (["migrate", "contenttypes", "-v0"], ["shell", "-c", "pass"]):
        subprocess.run([sys.executable, "manage.py", *command], cwd=tmp_path, timeout=60, check=True)
        assert not list(tmp_path.glob("durably.db*"))
