"""``durably.settings.is_test_run``: true in the processes of a test run, false in the servers that tests start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from durably.settings import is_test_program, is_test_run

pytest_plugins = ["pytester"]

ASK = "from durably.settings import is_test_run\n"
IN_PYTEST = f"""
{ASK}
assert is_test_run()

def test_it():
    assert is_test_run()
"""
IN_UNITTEST = f"""
import unittest
{ASK}
at_import = is_test_run()

class Case(unittest.TestCase):
    def test_it(self):
        self.assertTrue(at_import)
        self.assertTrue(is_test_run())
"""
IN_DJANGO = f"""
import sys
import django.conf
from django.core.management import execute_from_command_line
{ASK}
django.conf.settings.configure(DATABASES={{}})
if sys.argv[1] == "test":
    assert is_test_run()
if sys.argv[1] == "check":
    assert not is_test_run()
execute_from_command_line(sys.argv)
"""


def run(*arguments: str, cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_this_process_runs_tests() -> None:
    assert is_test_run()


def test_a_forked_child_of_a_test_run_runs_tests() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0 if is_test_run() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.slow
def test_a_program_that_a_test_starts_runs_no_tests(tmp_path: Path) -> None:
    """Although it inherits pytest's variables, imports pytest and even Django's test client."""
    assert os.environ["PYTEST_CURRENT_TEST"]
    code = f"import pytest, unittest, django.test\n{ASK}assert not is_test_run()"
    (tmp_path / "server.py").write_text(code)
    run("-c", code, cwd=tmp_path)
    run("server.py", cwd=tmp_path)
    run("-m", "server", "test", cwd=tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [pytest.param([], id="plugin"), pytest.param(["-p", "no:durably"], id="no-plugin", marks=pytest.mark.slow)],
)
def test_process_of_pytest_is_a_test_run(pytester: pytest.Pytester, arguments: list[str]) -> None:
    pytester.makeconftest(IN_PYTEST)
    pytester.makepyfile(IN_PYTEST)
    pytester.runpytest_subprocess(*arguments).assert_outcomes(passed=1)


@pytest.mark.slow
def test_the_workers_of_pytest_xdist_run_tests(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makeconftest(IN_PYTEST)
    pytester.makepyfile(IN_PYTEST)
    pytester.runpytest_subprocess("-n1").assert_outcomes(passed=1)


def test_process_of_unittest_is_a_test_run(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(IN_UNITTEST)
    run("-m", "unittest", cwd=tmp_path)


def test_djangos_test_command_runs_tests_and_others_do_not(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(IN_UNITTEST)
    (tmp_path / "manage.py").write_text(IN_DJANGO)
    run("manage.py", "test", cwd=tmp_path)
    run("manage.py", "check", cwd=tmp_path)


def test_djangos_test_environment_is_a_test_run(tmp_path: Path) -> None:
    """Under whatever name it is started."""
    code = f"""
import django.conf
from django.test.utils import setup_test_environment, teardown_test_environment
{ASK}
django.conf.settings.configure()
assert not is_test_run()
setup_test_environment()
assert is_test_run()
teardown_test_environment()
assert not is_test_run()
"""
    run("-c", code, cwd=tmp_path)


@pytest.mark.parametrize(
    ("main_module", "arguments", "expected"),
    [
        (None, ["/venv/bin/pytest", "-q"], True),
        (None, ["py.test"], True),
        ("pytest.__main__", ["/site-packages/pytest/__main__.py"], True),
        ("unittest.__main__", ["python -m unittest"], True),
        ("tornado.testing", ["tornado/testing.py"], True),
        (None, ["./manage.py", "test", "shop"], True),
        (None, ["/venv/bin/django-admin", "test"], True),
        ("django.__main__", ["/site-packages/django/__main__.py", "test"], True),
        (None, ["manage.py", "runserver"], False),
        (None, ["manage.py"], False),
        (None, ["manage.py", "migrate", "test"], False),
        (None, ["/venv/bin/gunicorn", "test"], False),
        ("uvicorn.__main__", ["uvicorn", "test:app"], False),
        (None, [], False),
    ],
)
def test_programs_of_test_runners_are_recognised(main_module: str | None, arguments: list[str], expected: bool) -> None:
    assert is_test_program(main_module, arguments) is expected
