"""Faults that are put into a sound database, and found."""

import contextlib
import re
import sqlite3
from pathlib import Path

import pytest

from durably.engine.sqlite.maintenance import check_database

from ..conftest import QUICK, only_run, opened, run_to_end, send, step_is
from ..small_app import SmallApp, Steps


@pytest.fixture
async def database(path: Path, app: SmallApp) -> Path:
    """With runs that sleep, invoke and have ended."""

    @app.function("done")
    def done(steps: Steps) -> object:
        return [steps.run("a"), steps.run("b")]

    @app.function("sleeper")
    def sleeper(steps: Steps) -> None:
        steps.run("a")
        steps.sleep("nap", "1h")

    @app.function("parent")
    def parent(steps: Steps) -> None:
        steps.invoke("child", "app-sleeper")

    async with opened(path) as engine:
        await engine.sync_app(app.sync_request())
        await run_to_end(engine, "done")
        for name, step, status in (("sleeper", "nap", "sleeping"), ("parent", "child", "waiting")):
            await step_is(engine, await only_run(engine, await send(engine, name)), step, status)
    return path


def break_(database: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.executescript(statement)


OF_SLEEPER = "(SELECT key FROM runs WHERE function_id = 'app-sleeper' ORDER BY key LIMIT 1)"


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        ("", None),
        (f"DELETE FROM runs WHERE key = {OF_SLEEPER}", "run_states hold rows of a run that does not exist"),
        (
            f"DELETE FROM run_states WHERE run_key = {OF_SLEEPER}",
            "is live but has no run state, so nothing continues it",
        ),
        (f"DELETE FROM run_states WHERE run_key = {OF_SLEEPER}", "waits hold rows of a run that has no run state"),
        (f"UPDATE runs SET status = 'Completed' WHERE key = {OF_SLEEPER}", "is Completed but has a run state"),
        ("DELETE FROM events WHERE name = 'sleeper'", "has lost an event that triggered it"),
        ("UPDATE run_states SET state = x'c1'", "the run state of run .* is damaged"),
        (f"DELETE FROM memos WHERE run_key = {OF_SLEEPER}", "counts 1 memos, and 0 are stored"),
        (f"DELETE FROM waits WHERE run_key = {OF_SLEEPER}", "run .*: step 'nap' waits, but its wait is missing"),
        (f"UPDATE waits SET step_id = 'x' WHERE run_key = {OF_SLEEPER}", "a wait of step x is stored"),
        (f"INSERT INTO slots VALUES ({OF_SLEEPER}, 9, x'91a161', 1)", "run .*: call 9 uses a slot, but is no longer"),
        (
            f"INSERT INTO slots VALUES ({OF_SLEEPER}, 9, x'91a161', 1)",
            "of the slots a, 0 count as taken, and calls take 1",
        ),
        ("INSERT INTO slots_used VALUES ('a', 2)", "of the slots a, 2 count as taken, and calls take 0"),
        (
            f"INSERT INTO queued_calls VALUES ('lane', 1, {OF_SLEEPER}, 9)",
            "run .*: call 9 waits in the queue, but is no longer",
        ),
        ("UPDATE memos SET seq = 1", "the memos of run .* have no clear order"),
        ("UPDATE memos SET memo = '{'", "the memo of step a of run .* is not JSON"),
        ("UPDATE events SET body = '{' WHERE name = 'done'", "the event .* is not JSON"),
        ("UPDATE functions SET config = '[]'", "the configuration of function app-done cannot be read"),
        (
            "UPDATE waits SET topic = (SELECT id FROM events WHERE name = 'done') WHERE op = 'InvokeFunction'",
            "waits for the end of a run that it invoked: run .* has ended",
        ),
        ("UPDATE waits SET topic = 'x' WHERE op = 'InvokeFunction'", "that it invoked: one that does not exist"),
    ],
)
def test_inconsistent_rows_are_found(database: Path, fault: str, finding: str | None) -> None:
    break_(database, fault)
    found = check_database(database)
    if finding is None:
        assert found == []
    else:
        assert re.search(finding, "\n".join(found)), found


async def test_a_call_that_is_put_off_to_no_time_is_found(path: Path, app: SmallApp) -> None:
    app.url = "http://127.0.0.1:1/api/inngest"
    app.function("down")(lambda steps: None)
    async with opened(path, QUICK) as engine:
        await engine.sync_app(app.sync_request())
        with engine.watch() as updates:
            await send(engine, "down")
            async for update in updates:
                if update.error is not None:
                    break
    break_(path, "DELETE FROM delayed_calls")
    assert any("a delayed call has no time" in finding for finding in check_database(path))


def test_a_damaged_file_is_found(database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'memos'").fetchone()
    with database.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)
    assert any("the file is damaged" in finding for finding in check_database(database))


async def test_a_database_in_use_is_examined(path: Path, app: SmallApp) -> None:
    async with opened(path) as engine:
        await send(engine, "unmatched")
        assert check_database(path) == []


def test_many_of_a_kind_are_abridged(database: Path) -> None:
    rows = ", ".join(f"({key}, 'x', 1, 'x', 'StepRun', 1, 0, 0, 0, 'null')" for key in range(1000, 1030))
    columns = "run_key, step_id, seq, name, op, attempts, failed, created_at, ended_at, memo"
    break_(database, f"INSERT INTO memos ({columns}) VALUES {rows}")
    found = check_database(database)
    assert found[-1] == "… and 10 more like that"


def test_the_parts_of_a_check_are_reported(database: Path) -> None:
    parts: list[tuple[str, int, int]] = []
    assert check_database(database, on_progress=lambda *part: parts.append(part)) == []
    names, numbers, totals = zip(*parts, strict=True)
    assert numbers == tuple(range(1, len(parts) + 1))
    assert set(totals) == {len(parts)}
    assert {"the file", "live runs", "the contents of events", "the contents of functions"} <= set(names)
