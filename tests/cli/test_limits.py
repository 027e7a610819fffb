"""``--max-steps`` and ``--max-depth`` reach the engine, in production and in development."""

from functools import partial
from typing import Any

import pytest
from click.testing import CliRunner

from durably.cli import dev as dev_server
from durably.cli import log as log_lines
from durably.cli import start as production_server
from durably.cli.dev import dev
from durably.cli.start import start
from durably.engine.model.settings import EngineSettings

LIMITS = ["--max-steps", "7", "--max-depth", "3"]
KEYS = ["--signing-key", "signkey-test-0123456789abcdef0123456789abcdef", "--event-key", "events"]


def test_start_passes_limits_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[EngineSettings] = []

    async def serve(open_server: partial[Any], store: object, **options: Any) -> None:
        _, settings = open_server.args
        found.append(settings)

    monkeypatch.setattr(production_server, "serve", serve)
    monkeypatch.setattr(log_lines, "write_log", lambda log_format: None)
    result = CliRunner().invoke(start, ["--db", "engine.db", *KEYS, *LIMITS])
    assert result.exit_code == 0, result.output
    assert [(settings.max_steps, settings.max_depth) for settings in found] == [(7, 3)]


async def test_the_development_server_sets_limits(tmp_path: Any) -> None:
    options = dev_server.DevOptions(port=0, database=tmp_path / "dev.db", max_steps=7, max_depth=3)
    async with dev_server.DevServer(options) as server:
        settings = server.engine._settings
        assert (settings.max_steps, settings.max_depth) == (7, 3)


def test_dev_passes_limits_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dev_server.DevOptions] = []

    class Server:
        def __init__(self, options: dev_server.DevOptions, **others: Any) -> None:
            found.append(options)

        async def __aenter__(self) -> "Server":
            return self

        async def __aexit__(self, *arguments: object) -> None: ...

        async def run(self) -> None: ...

    monkeypatch.setattr(dev_server, "DevServer", Server)
    result = CliRunner().invoke(dev, LIMITS)
    assert result.exit_code == 0, result.output
    assert [(options.max_steps, options.max_depth) for options in found] == [(7, 3)]


@pytest.mark.parametrize("option", ["--max-steps", "--max-depth"])
def test_limits_of_nothing_are_refused(option: str) -> None:
    assert CliRunner().invoke(start, ["--db", "engine.db", *KEYS, option, "0"]).exit_code == 2
