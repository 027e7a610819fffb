"""A separate Django project for a test: copied, migrated, and run by its real ``manage.py``."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from ...cli.conftest import Command

PROJECT = Path(__file__).with_name("django_project")
_migrated: list[bytes] = []
"""The database of the project, once a site of this process has been migrated."""


class DjangoSite:
    def __init__(self, directory: Path, server: str) -> None:
        self.directory = directory / "site"
        shutil.copytree(PROJECT, self.directory, ignore=shutil.ignore_patterns("__pycache__", "*.sqlite3"))
        self.task_queue = f"django-{uuid.uuid4().hex[:8]}"
        self.variables = {"TEST_TEMPORAL_SERVER": server, "TEST_TASK_QUEUE": self.task_queue}
        self._commands: list[Command] = []

    def environment(self, variables: dict[str, str]) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "TEMPORAL_"))}
        return {**own, **self.variables, **variables}

    def run(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """``manage.py …`` to its end."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=self.directory,
            env=self.environment(variables),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def start(self, *arguments: str, **variables: str) -> Command:
        """``manage.py …`` that keeps running."""
        return self._start([sys.executable, "manage.py"], arguments, variables)

    def start_asgi(self, port: int) -> Command:
        """The site under an ASGI server."""
        app = ("django.core.asgi:get_asgi_application", "--factory", "--port", str(port), "--lifespan", "off")
        return self._start([sys.executable, "-m", "uvicorn"], app, {"DJANGO_SETTINGS_MODULE": "project.settings"})

    def _start(self, program: list[str], arguments: tuple[str, ...], variables: dict[str, str]) -> Command:
        command = Command(arguments, self.directory, self.environment(variables), program)
        self._commands.append(command)
        return command

    def work(self, *arguments: str, **variables: str) -> Command:
        command = self.start("run_temporal_worker", *arguments, **variables)
        command.until(f"working on {self.task_queue}:")
        return command

    def migrate(self) -> None:
        """Migrations take seconds, so that later sites of this process copy the first one's database."""
        database = self.directory / "db.sqlite3"
        if not _migrated:
            done = self.run("migrate")
            assert done.returncode == 0, done.stderr
            _migrated.append(database.read_bytes())
        database.write_bytes(_migrated[0])

    def shell(self, code: str) -> Any:
        """The value of ``result`` after the code has run in the project, from JSON."""
        done = self.run("shell", "--command", f"import json\n{code}\nprint(json.dumps(result))")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    def query(self, sql: str) -> list[Any]:
        with sqlite3.connect(self.directory / "db.sqlite3") as database:
            return database.execute(sql).fetchall()

    def stop(self) -> None:
        for command in self._commands:
            command.process.kill()
            command.wait()
