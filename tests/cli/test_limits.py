"""``--max-steps`` and ``--max-depth`` reach the engine, in production and in development."""

from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from durably.cli import dev, start
from durably.cli.text import CliError
from durably.engine.model.settings import EngineSettings

KEYS = ("--signing-key", "signkey-test-0123456789abcdef0123456789abcdef", "--event-key", "events")
COMMANDS = [(start, "start", KEYS), (dev, "dev", ())]


@pytest.mark.parametrize(("module", "name", "options"), COMMANDS)
def test_limits_reach_the_engine(
    module: ModuleType, name: str, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[EngineSettings] = []

    async def serve_database(database: object, settings: EngineSettings, **options: Any) -> None:
        found.append(settings)
        raise CliError("enough")

    monkeypatch.setattr(module, "serve_database", serve_database)
    monkeypatch.setattr(module, "write_log", lambda log_format: None)
    arguments = ["--db", "engine.db", *options, "--max-steps", "7", "--max-depth", "3"]
    result = CliRunner().invoke(getattr(module, name), arguments)
    assert result.output.endswith("enough\n")
    assert [(settings.max_steps, settings.max_depth) for settings in found] == [(7, 3)]


@pytest.mark.parametrize("option", ["--max-steps", "--max-depth"])
def test_limits_of_nothing_are_refused(option: str) -> None:
    assert CliRunner().invoke(start.start, ["--db", "engine.db", *KEYS, option, "0"]).exit_code == 2
