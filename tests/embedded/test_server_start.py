"""The program of a process, by its command; its imports and its exit."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from durably.embedded.server_start import Program, is_importing, program_of
from durably.settings import Environment

SERVER, COMMAND, OTHER = Program.SERVER, Program.COMMAND, Program.OTHER


@pytest.mark.parametrize(
    ("command", "variables", "expected"),
    [
        ("/venv/bin/gunicorn main:app --preload", {}, SERVER),
        ("/venv/lib/uvicorn/__main__.py main:app --workers 2", {}, SERVER),
        ("waitress-serve main:app", {}, SERVER),
        ("hypercorn main:app --reload", {}, OTHER),
        ("/venv/bin/flask --app main run", {}, SERVER),
        ("flask run --debug", {}, COMMAND),
        ("flask run --debug", {"WERKZEUG_RUN_MAIN": "true"}, SERVER),
        ("flask run", {"FLASK_DEBUG": "1"}, COMMAND),
        ("flask run --no-reload", {"FLASK_DEBUG": "1"}, SERVER),
        ("flask shell", {}, COMMAND),
        ("manage.py runserver", {}, COMMAND),
        ("manage.py runserver", {"RUN_MAIN": "true"}, SERVER),
        ("manage.py runserver --noreload", {}, SERVER),
        ("/site-packages/django/__main__.py migrate", {}, COMMAND),
        ("manage.py migrate", {}, COMMAND),
        ("main.py", {}, OTHER),
        ("", {}, OTHER),
    ],
)
def test_program_is_recognised_by_its_command(command: str, variables: dict[str, str], expected: Program) -> None:
    assert program_of(command.split(), Environment(variables)) is expected


def test_import_is_seen_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_by_test.py").write_text(
        "from durably.embedded.server_start import is_importing\nwas_importing = is_importing()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.import_module("imported_by_test").was_importing
    assert not is_importing()


AT_EXIT = """
import concurrent.futures
from durably.embedded.server_start import call_before_threads_end
pool = concurrent.futures.ThreadPoolExecutor()
pool.submit(int).result()
call_before_threads_end(lambda: print(pool.submit(lambda: "ran").result()))
"""


def test_threads_still_run_at_the_exit() -> None:
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "ran"
