"""The database's path: resolved once, and logged."""

import logging
import os
from pathlib import Path

import pytest

from durably import Client, Embedded, Event


async def test_a_relative_path_is_resolved_once_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "durably.engine")
    monkeypatch.chdir(tmp_path)
    engine = Embedded("durably.db")
    (tmp_path / "elsewhere").mkdir()
    os.chdir("elsewhere")
    assert engine.path == tmp_path / "durably.db"
    async with engine.running():
        assert (tmp_path / "durably.db").exists()
    assert f"is now the leader of the database {tmp_path / 'durably.db'}" in caplog.text
    assert os.listdir() == []


async def test_a_database_without_functions_is_warned_of_when_something_is_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Embedded(tmp_path / "wrong.db")
    client = Client(app_id="app", engine=engine)
    async with engine.running():
        await client.send([Event(name="f"), Event(name="g")])
        assert "was sent and stored" not in caplog.text  # The line on the database says it.
        await client.send(Event(name="h"))
    assert caplog.text.count(f"the database {tmp_path}/wrong.db has no functions") == 1
