"""Which program a process is, by its command."""

import pytest

from durably.in_process.server_start import Program, program_of
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
def test_programs(command: str, variables: dict[str, str], expected: Program) -> None:
    assert program_of(command.split(), Environment(variables)) is expected
