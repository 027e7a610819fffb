"""Failed starts of ``durably dev``: one or two lines, exit code 1, no traceback."""

import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from durably.engine.model.settings import Durability
from durably.engine.sqlite.database import open_database

from . import apps
from .conftest import Result, Run, Start, write


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def check_failure(result: Result, pattern: str) -> None:
    assert result.status == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 3
    assert re.search(pattern, result.stderr, re.DOTALL), result.stderr


def test_the_engines_port_is_taken(run: Run, taken_port: int) -> None:
    check_failure(run("dev", "--port", str(taken_port)), rf"port {taken_port} of 127.0.0.1 is taken.*--port")


def test_the_apps_port_is_taken(run: Run, directory: Path, taken_port: int) -> None:
    write(directory / "shop.py", apps.FLASK.format(sdk="durably"))
    result = run("dev", "shop:app", "--port", "0", "--app-port", str(taken_port))
    check_failure(result, rf"port {taken_port} of 127.0.0.1 is taken.*--app-port")


@pytest.mark.parametrize(
    ("source", "pattern"),
    [
        ("import nothere", r"importing shop failed: .*No module named 'nothere'.*shop\.py, line 1: import nothere"),
        ("app = {'a': 1}", "shop:app is an object of type builtins.dict, not an app.*FastAPI.*DigitalOcean"),
    ],
)
def test_missing_app_is_an_error(run: Run, directory: Path, source: str, pattern: str) -> None:
    write(directory / "shop.py", source)
    check_failure(run("dev", "shop:app", "--port", "0", "--app-port", "0"), pattern)


def test_the_app_serves_no_functions(run: Run, directory: Path) -> None:
    write(directory / "shop.py", "import flask\napp = flask.Flask(__name__)")
    check_failure(run("dev", "shop:app", "--port", "0", "--app-port", "0"), "serves no functions at .*--app-path")


def test_the_app_has_its_engine_in_its_own_processes(run: Run, directory: Path) -> None:
    """Django needs no endpoint then, and loads the client with the first request."""
    write(directory / "shop.py", apps.DJANGO_EMBEDDED)
    result = run("dev", "shop:app", "--port", "0", "--app-port", "0")
    assert result.status == 1
    explained = (
        r"shop:app has an engine in its own processes \(the engine on .*/durably\.db\).*DURABLY_DEV=1 python manage\.py"
    )
    assert re.search(explained, result.stderr), result.stderr
    assert "--app-path" not in result.stderr


IN_PROCESS = 'is_production=False, engine=durably.Embedded("durably.db")'


@pytest.mark.parametrize("source", [apps.FASTAPI, apps.FLASK, apps.TORNADO], ids=["fast_api", "flask", "tornado"])
def test_an_app_with_an_engine_of_its_own_is_refused_before_it_runs(run: Run, directory: Path, source: str) -> None:
    """Otherwise it would continue the runs of its database first."""
    write(directory / "shop.py", source.format(sdk="durably").replace("is_production=False", IN_PROCESS))
    result = run("dev", "shop:app", "--port", "0", "--app-port", "0")
    assert result.status == 1
    assert " ".join(result.stderr.split()).count("has an engine in its own processes") == 1, result.stderr
    assert not (directory / "durably.db").exists()


def test_an_app_with_both_kinds_of_engines_is_served(start: Start, directory: Path) -> None:
    source = (
        apps.FLASK.format(sdk="durably")
        + """
    import durably

    own = durably.Client(app_id="own", is_production=False, engine=durably.Embedded("durably.db"))
    durably.flask.serve(app, own, [], serve_path="/own")
"""
    )
    write(directory / "shop.py", source)
    start("dev", "shop:app", "--port", "0", "--app-port", "0").until("synced shop: shop-place")


def test_the_app_serves_its_functions_elsewhere(start: Start, directory: Path) -> None:
    source = apps.FLASK.format(sdk="durably").replace("client, [place])", 'client, [place], serve_path="/durable")')
    write(directory / "shop.py", source)
    dev = start("dev", "shop:app", "--port", "0", "--app-port", "0", "--app-path", "/durable")
    dev.until("shop:app is up at http://127.0.0.1:.*/durable")


def test_the_app_is_in_production_mode(run: Run, directory: Path) -> None:
    source = apps.FLASK.format(sdk="durably").replace(
        "is_production=False", 'is_production=True, signing_key="ab", event_key="x"'
    )
    write(directory / "shop.py", source)
    check_failure(run("dev", "shop:app", "--port", "0", "--app-port", "0"), "not in dev mode")


def test_the_app_ends_by_itself(run: Run, directory: Path) -> None:
    write(directory / "shop.py", "import os\nos._exit(7)")
    check_failure(run("dev", "shop:app", "--port", "0", "--app-port", "0"), "ended with exit status 7")


def test_the_database_is_locked_by_another_engine(start: Start, run: Run, directory: Path) -> None:
    first = start("dev", "--port", "0")
    assert first.origin
    check_failure(run("dev", "--port", "0"), "belongs to another engine")
    check_failure(run("dev", "nosuch:app", "--port", "0"), "there is no module 'nosuch'")
    (directory / "fine.py").write_text("async def app(scope, receive, send): ...")
    check_failure(run("dev", "fine:app", "--port", "0"), "belongs to another engine")
    write(directory / "shop.py", apps.FLASK.format(sdk="durably").replace(", is_production=False", ""))
    check_failure(run("dev", "shop:app", "--port", "0"), "belongs to another engine")
    assert first.stop(signal.SIGTERM) == 0


def test_the_database_is_of_a_newer_version(run: Run, directory: Path) -> None:
    database = open_database(directory / "engine.db", Durability.OFF)
    database.execute("pragma user_version = 999999")
    database.close()
    check_failure(run("dev", "--port", "0", "--db", "engine.db"), "engine.db has schema version 999999.*update Durably")


def test_non_database_is_an_error(run: Run, directory: Path) -> None:
    (directory / "engine.db").write_bytes(b"not a database" * 1000)
    check_failure(run("dev", "--port", "0", "--db", "engine.db"), "engine.db")


def test_database_in_an_unwritable_directory_is_an_error(run: Run) -> None:
    check_failure(run("dev", "--port", "0", "--db", "/proc/nowhere/engine.db"), "cannot use the database /proc/nowhere")


def test_the_host_is_not_ours(run: Run) -> None:
    check_failure(run("dev", "--port", "0", "--host", "203.0.113.7"), "cannot listen at 203.0.113.7")


def test_the_host_is_empty(run: Run) -> None:
    result = run("dev", "--port", "0", "--host", "")
    assert (result.status, "'--host'" in result.stderr) == (2, True)
