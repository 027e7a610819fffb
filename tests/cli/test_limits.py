"""``--max-steps``, ``--max-depth`` and ``--max-event-bytes`` reach the engine, the first two in development too."""

from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from durably.cli import dev, start
from durably.cli.text import CliError
from durably.engine.model.settings import EngineSettings
from durably.protocol.limits import MAX_DEV_EVENT_BYTES

KEYS = ("--signing-key", "signkey-test-0123456789abcdef0123456789abcdef", "--event-key", "events")
COMMANDS = [
    (start, "start", (*KEYS, "--max-event-bytes", "600000"), 600_000),
    (dev, "dev", (), MAX_DEV_EVENT_BYTES),
]


@pytest.mark.parametrize(("module", "name", "options", "max_event_bytes"), COMMANDS)
def test_limits_reach_the_engine(
    module: ModuleType, name: str, options: tuple[str, ...], max_event_bytes: int, monkeypatch: pytest.MonkeyPatch
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
    [settings] = found
    assert (settings.max_steps, settings.max_depth, settings.max_event_bytes) == (7, 3, max_event_bytes)


@pytest.mark.parametrize("option", ["--max-steps", "--max-depth", "--max-event-bytes"])
def test_limits_of_nothing_are_refused(option: str) -> None:
    assert CliRunner().invoke(start.start, ["--db", "engine.db", *KEYS, option, "0"]).exit_code == 2
