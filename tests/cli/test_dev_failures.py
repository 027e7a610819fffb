"""Failed starts of ``durably dev``: one or two lines, exit code 1, no traceback."""

import contextlib
import re
import socket
import sqlite3
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


FLASK = apps.FLASK.format(sdk="durably")
IN_PRODUCTION = FLASK.replace("is_production=False", 'is_production=True, signing_key="ab", event_key="x"')
IN_PROCESS = 'is_production=False, engine=durably.Embedded("durably.db")'
WITH_OWN_ENGINE = [
    source.format(sdk="durably").replace("is_production=False", IN_PROCESS)
    for source in (apps.FASTAPI, apps.FLASK, apps.TORNADO)
]
OWN_ENGINE = r"shop:app has an engine in its own processes \(the engine on .*/durably\.db\).*DURABLY_DEV=1.*"


@pytest.mark.parametrize(
    ("source", "pattern"),
    [
        ("import nothere", r"importing shop failed: .*No module named 'nothere'.*shop\.py, line 1: import nothere"),
        ("app = {'a': 1}", "is not an app.*FastAPI.*DigitalOcean"),
        ("import flask\napp = flask.Flask(__name__)", "serves no functions at .*--app-path"),
        ("import os\nos._exit(7)", "ended with exit status 7"),
        (IN_PRODUCTION, "not in dev mode"),
        # Django needs no endpoint then, and loads the client with the first request.
        (apps.DJANGO_EMBEDDED, f"{OWN_ENGINE}python manage.py"),
        *((source, f"{OWN_ENGINE}uvicorn shop:app") for source in WITH_OWN_ENGINE),
    ],
    ids=["import", "object", "no_functions", "exit", "production", "django", "fast_api", "flask", "tornado"],
)
def test_an_app_that_cannot_be_served_is_explained(run: Run, directory: Path, source: str, pattern: str) -> None:
    write(directory / "shop.py", source)
    check_failure(run("dev", "shop:app", "--port", "0", "--app-port", "0"), pattern)
    if "fast_api" in source:  # Its own engine would continue the runs of its database.
        assert not (directory / "durably.db").exists()


def test_a_taken_port_is_named_with_its_option(run: Run, directory: Path, taken_port: int) -> None:
    write(directory / "shop.py", FLASK)
    for arguments, option in ((("--port",), "--port"), (("shop:app", "--port", "0", "--app-port"), "--app-port")):
        check_failure(run("dev", *arguments, str(taken_port)), rf"port {taken_port} of 127.0.0.1 is taken.*{option}")


def test_an_app_with_both_kinds_of_engines_is_served(start: Start, directory: Path) -> None:
    source = (
        FLASK
        + """
    import durably

    own = durably.Client(app_id="own", is_production=False, engine=durably.Embedded("durably.db"))
    durably.flask.serve(app, own, [], serve_path="/own")
"""
    )
    write(directory / "shop.py", source)
    start("dev", "shop:app", "--port", "0", "--app-port", "0").until("synced shop: shop-place")


def test_the_app_serves_its_functions_elsewhere(start: Start, directory: Path) -> None:
    source = FLASK.replace("client, [place])", 'client, [place], serve_path="/durable")')
    write(directory / "shop.py", source)
    dev = start("dev", "shop:app", "--port", "0", "--app-port", "0", "--app-path", "/durable")
    dev.until("shop:app is up at http://127.0.0.1:.*/durable")


def test_the_database_is_locked_by_another_engine(start: Start, run: Run) -> None:
    assert start("dev", "--port", "0").origin
    check_failure(run("dev", "--port", "0"), "belongs to another engine")


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (("--db", "newer.db"), "newer.db has schema version 999999.*update Durably"),
        (("--db", "text.db"), "text.db"),
        (("--db", "/proc/nowhere/engine.db"), "cannot use the database /proc/nowhere"),
        (("--host", "203.0.113.7"), "cannot listen at 203.0.113.7"),
    ],
)
def test_a_place_that_cannot_be_used_is_named(
    run: Run, directory: Path, options: tuple[str, ...], pattern: str
) -> None:
    (directory / "text.db").write_bytes(b"not a database" * 1000)
    open_database(directory / "newer.db", Durability.OFF).close()
    with contextlib.closing(sqlite3.connect(directory / "newer.db")) as database:
        database.execute("pragma user_version = 999999")
    check_failure(run("dev", "--port", "0", *options), pattern)


def test_the_host_is_empty(run: Run) -> None:
    result = run("dev", "--port", "0", "--host", "")
    assert (result.status, "'--host'" in result.stderr) == (2, True)
