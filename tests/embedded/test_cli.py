"""``durably runs`` and similar commands reach the engine in an app's processes by the path of its database."""

import json
import subprocess
import sys
from pathlib import Path

from durably.embedded import sockets

from .cluster import ROOT, gunicorn, serving


def durably(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from durably.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def test_commands_reach_the_leader(tmp_path: Path) -> None:
    database = str(tmp_path / "durably.db")
    with serving(gunicorn("flask_app", 2), tmp_path) as cluster:
        cluster.wait_joined(2)
        sent = durably("send", "count", "--db", database)
        assert sent.returncode == 0, sent.stderr
        cluster.wait_completed(1)
        listed = durably("runs", "list", "--json", "--db", database)
        [run] = json.loads(listed.stdout)
        assert run["status"] == "Completed"
        shown = durably("runs", "show", run["run_id"], "--db", database)
        assert "step-3" in shown.stdout
    stopped = durably("runs", "list", "--db", database)
    assert stopped.returncode != 0
    assert database in stopped.stderr


def test_database_without_an_app_is_reported(tmp_path: Path) -> None:
    (tmp_path / "other.db").touch()
    listed = durably("runs", "list", "--db", str(tmp_path / "other.db"))
    assert "no app runs its engine" in listed.stderr


def test_command_asks_to_restart_an_app_that_died(tmp_path: Path) -> None:
    database = tmp_path / "durably.db"
    database.touch()
    directory = sockets.directory_of(database)
    sockets.make_directory(directory)
    sockets.path_of(directory, 1).touch()
    listed = durably("runs", "list", "--db", str(database))
    assert "Start the app that has its Embedded(…) there." in listed.stderr
    assert "--url" not in listed.stderr
