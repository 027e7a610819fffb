"""Databases that earlier versions have written."""

import contextlib
import datetime as dt
import sqlite3
from pathlib import Path

import msgspec

from durably.engine.model.runs import Run, RunStatus
from durably.engine.model.settings import Durability, SystemClock
from durably.engine.sqlite.database import APPLICATION_ID, open_database
from durably.engine.sqlite.maintenance import check_database
from durably.engine.sqlite.migrations import MIGRATIONS

from ..conftest import QUICK, ShiftedClock, ended, opened, output, send
from ..small_app import SmallApp, Steps

FIRST_VERSION = Path(__file__).with_name("first_version.sql")
NEXT_DAY = round(dt.datetime(2025, 1, 2, 15, tzinfo=dt.UTC).timestamp() * 1000)
"""After the one that its runs were begun on."""


def test_migrations_are_applied_once_each(path: Path) -> None:
    for applied in range(len(MIGRATIONS) + 1):
        path.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.executescript("".join(MIGRATIONS[:applied]))
            connection.execute(f"PRAGMA user_version = {applied}")
            if applied:
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        for _ in range(2):
            with contextlib.closing(open_database(path, Durability.FULL)) as connection:
                assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
                schema = connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()
        assert schema == whole_schema(path.with_name("new.db"))


def whole_schema(path: Path) -> list[tuple[str, str]]:
    with contextlib.closing(open_database(path, Durability.FULL)) as connection:
        return connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()


async def test_runs_of_the_first_version_continue(path: Path, app: SmallApp) -> None:
    @app.function("sleeper")
    def sleeper(steps: Steps) -> object:
        before = steps.run("before", lambda: "again")
        steps.sleep("nap", "1h")
        return [before, steps.run("after", lambda: "new")]

    @app.function("waiter")
    def waiter(steps: Steps) -> object:
        matching = "async.data.id == event.data.id"
        return steps.wait_for_event("wait", "go", timeout="8000h", expression=matching)["data"]

    @app.function("retrier")
    def retrier(steps: Steps) -> object:
        return f"attempt {steps.attempt}"

    @app.function("child")
    def child(steps: Steps) -> object:
        return steps.wait_for_event("wait", "grow", timeout="8000h")["data"]

    @app.function("parent")
    def parent(steps: Steps) -> object:
        return steps.invoke("child", "app-child", {"n": 1})

    @app.function("mover")
    def mover(steps: Steps) -> object:
        return steps.parallel(steps.running("left", lambda: "l"), steps.running("right", lambda: "r"))

    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(FIRST_VERSION.read_text())
    settings = msgspec.structs.replace(QUICK, clock=ShiftedClock(NEXT_DAY - SystemClock().now()))
    async with opened(path, settings) as engine:
        await engine.sync_app(app.sync_request())
        await send(engine, "go", id=6)
        await send(engine, "go", id=7, right=True)
        await send(engine, "grow", tall=True)
        runs: dict[str, Run] = {}
        for run in await engine.list_runs():
            runs[run.function_id.removeprefix("app-")] = await ended(engine, run.id)
        steps = await engine.run_steps(runs["sleeper"].id)
    assert output(runs.pop("broken"))["message"] == "as stored"
    assert {run.status for run in runs.values()} == {RunStatus.COMPLETED}
    assert {name: output(run) for name, run in runs.items()} == {
        "done": 1,
        "sleeper": ["kept", "new"],
        "waiter": {"id": 7, "right": True},
        "retrier": "attempt 1",
        "child": {"tall": True},
        "parent": {"tall": True},
        "mover": ["l", "r"],
    }
    assert [step.id for step in steps] == ["before", "nap", "after"]
    assert "before" not in app.executions
    assert check_database(path) == []
