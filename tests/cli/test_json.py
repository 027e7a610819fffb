"""``--json`` of all commands, and the progress of long ones on a terminal."""

import contextlib
import json
import os
import pty
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from durably.cli.group import durably
from durably.cli.runs import report_bulk
from durably.engine.model.settings import Durability
from durably.engine.sqlite.database import open_database

from .command_server import CommandServer
from .conftest import TIMEOUT_SECONDS, Command, Result, Run, Start, environment

WITHOUT_JSON = {
    "dev": "it runs until it is stopped; --log-format json is for its log",
    "start": "it runs until it is stopped; --log-format json is for its log",
    "temporal dev": "it runs until it is stopped",
    "temporal worker": "it runs until it is stopped",
    "worker": "it runs until it is stopped",
    "relay": "it runs until it is stopped",
}


def commands_of(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if f"{path}{name}" in WITHOUT_JSON:
            continue
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


def test_all_commands_take_json_but_servers() -> None:
    commands = dict(commands_of(durably))
    assert len(commands) > 20
    assert [name for name, command in commands.items() if "as_json" not in {each.name for each in command.params}] == []


def read(result: Result, status: int = 0) -> Any:
    assert result.status == status, result.stderr
    return json.loads(result.stdout)


def test_sent_events_and_signals_are_printed_as_json(ask: Run, dev: Command) -> None:
    begun = len(dev.output)
    sent = ask("send", "order/placed", "--data", '{"total": 3, "signal": "go-json"}', "--json")
    assert sent.stderr == ""
    event = read(sent)
    assert (event["unmatched"], event["notes"]) == (None, [])
    [run] = event["runs"]
    assert run["function_id"] == "shop-place"
    assert event["id"] in run["event_ids"]
    dev.until(rf"{run['run_id'][-6:]} .* approved .* waits until", after=begun)
    assert read(ask("signal", "go-json", "--json")) == {"run_id": run["run_id"]}
    unknown = read(ask("send", "unmatched/event", "--json"))
    assert (unknown["unmatched"], unknown["runs"]) == (
        "no function is triggered by it, and no run waits for it now",
        [],
    )


def test_an_event_key_sends_with_json_and_reads_no_runs(start: Start, run: Run, directory: Path) -> None:
    keys = read(run("keys", "--dashboard", "--json"))
    assert set(keys) == {"DURABLY_SIGNING_KEY", "DURABLY_EVENT_KEY", "DURABLY_DASHBOARD_KEY"}
    written = read(run("keys", "--json", "--output", "durably.env"))
    assert written == {"output": "durably.env", "names": ["DURABLY_SIGNING_KEY", "DURABLY_EVENT_KEY"]}
    assert stat.S_IMODE((directory / "durably.env").stat().st_mode) == 0o600
    engine = start("start", "--db", "engine.db", "--port", "0", **keys)
    origin = engine.until(r'"message":"engine started","origin":"([^"]+)"')[1]
    variables = {"DURABLY_ENGINE_URL": origin, "DURABLY_EVENT_KEY": keys["DURABLY_EVENT_KEY"]}
    assert read(run("health", "--json", **variables)) == {"status": "ready"}
    ids = read(run("send", "order/placed", "--json", **variables))
    assert ids["unmatched"] or ids["runs"] is None
    assert engine.stop() == 0
    refused = run("health", "--json", **variables)
    assert (refused.status, refused.stdout, "no engine answers" in refused.stderr) == (1, "", True)


def test_invoked_runs_are_printed_as_json(ask: Run) -> None:
    run = read(ask("invoke", "shop-place", "--data", '{"total": 4}', "--json"))
    assert (run["status"], run["output"]) == ("Completed", {"charged": 4})
    failed = ask("invoke", "shop-place", "--data", '{"total": 4, "fail": true}', "--json")
    assert "ValueError: out of stock" in failed.stderr
    assert read(failed, status=1)["output"]["message"] == "out of stock"
    started = read(ask("invoke", "shop-place", "--data", '{"total": 4}', "--json", "--no-wait"))
    assert started["function_id"] == "shop-place"


@pytest.fixture
def database(directory: Path) -> Path:
    path = directory / "engine.db"
    open_database(path, Durability.OFF).close()
    return path


def test_backup_and_check_print_json(database: Path, run: Run) -> None:
    made = read(run("backup", "copy.db", "--db", "engine.db", "--json"))
    size = (database.parent / "copy.db").stat().st_size
    assert made == {"database": "engine.db", "destination": "copy.db", "bytes": size}
    assert read(run("check", "--db", "copy.db", "--json")) == {"database": "copy.db", "faults": []}
    with contextlib.closing(open_database(database, Durability.OFF)) as connection:
        connection.execute("INSERT INTO slots_used (id, used) VALUES ('lost', 1)")
    found = read(run("check", "--db", "engine.db", "--json"), status=1)
    assert found["faults"] == ["of the slots lost, 1 count as taken, and calls take 0"]


def test_backup_and_check_show_progress_on_a_terminal(
    database: Path, directory: Path, command_server: CommandServer
) -> None:
    def errors_of(*arguments: str) -> str:
        master, terminal = pty.openpty()
        try:
            with open(os.devnull, "r+b") as null:
                descriptors = [null.fileno(), null.fileno(), terminal]
                assert command_server.run(arguments, directory, environment(), descriptors, TIMEOUT_SECONDS) == 0
            return os.read(master, 65536).decode()
        finally:
            os.close(master)
            os.close(terminal)

    size = database.stat().st_size
    clear = "\r\x1b[K"
    copied = errors_of("backup", "copy.db", "--db", "engine.db")
    assert re.match(re.escape(clear) + r"[█░]{20} \d+ % copied ", copied)
    assert copied.endswith(f" bytes{clear}")
    assert size > 0
    checked = errors_of("check", "--db", "copy.db")
    first, *_, last, cleared = checked.split(clear)[1:]
    assert re.match(r"░{20} 0 % checking the file \(1 of ", first)
    assert cleared == ""
    number, total = last.removesuffix(")").split("(")[1].split(" of ")
    assert number == total


def test_bulk_operations_show_how_many_runs_they_have_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("durably.cli.runs._POLL_SECONDS", 0)
    states = iter([SimpleNamespace(id="1", affected=2, ended_at=None), SimpleNamespace(id="1", affected=4, ended_at=1)])
    begun: Any = SimpleNamespace(id="1", affected=1, ended_at=None)
    report_bulk(begun, lambda id: next(states), "replay", "started again", no_wait=False, as_json=False)
    printed = capsys.readouterr()
    assert printed.out == "4 runs were started again\n"
    assert printed.err.split("\r\x1b[K")[1:-1] == ["1 runs so far", "2 runs so far"]


def test_progress_is_not_printed_to_a_pipe(database: Path, run: Run) -> None:
    assert run("backup", "copy.db", "--db", "engine.db").stderr == ""
    assert run("check", "--db", "copy.db").stderr == ""


def test_a_key_of_temporal_is_printed_as_json(run: Run) -> None:
    printed = read(run("temporal", "encryption-key", "spring", "--json"))
    assert printed["id"] == "spring"
    assert printed["key"].startswith("spring:")
