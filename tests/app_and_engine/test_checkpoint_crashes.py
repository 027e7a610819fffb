"""An app that is killed while it goes on: what it handed over does not run again."""

import asyncio
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from durably.engine.api.http.server import EngineServer
from durably.protocol.events import Event

from ..conformance.client import request
from ..conformance.programs import clean_environment, running
from ..ports import free_port
from ..variants import variants


@pytest.mark.parametrize(("buffered", "repeated"), variants([(1, 0), (3, 2)], [(3, 2)]))
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_an_app_killed_in_a_step(
    engine: EngineServer, tmp_path: Path, kind: str, buffered: int, repeated: int
) -> None:
    """Killed in its sixth step: with a buffer of three, the two steps before that one had not been handed over."""
    log, port = tmp_path / "log", free_port()
    environment = clean_environment(
        DURABLY_DEV=engine.origin,
        DYING_APP_LOG=str(log),
        DYING_APP_FUNCTION=kind,
        DYING_APP_BUFFERED_STEPS=str(buffered),
    )

    def running_app() -> AbstractContextManager[Any]:
        directory = Path(__file__).parent
        command = [sys.executable, "-m", "uvicorn", "dying_app:app", "--app-dir", str(directory), "--port", str(port)]
        return running([*command, "--log-level", "critical"], port, environment, cwd=directory)

    with running_app() as process:
        answer = await asyncio.to_thread(request, "PUT", f"http://127.0.0.1:{port}/api/inngest", b"", {})
        assert answer.status == 200, answer.body
        (event_id,) = await engine.engine.send_events([Event(name="go", data={})])
        (run,) = await engine.engine.event_runs(event_id)
        await asyncio.to_thread(process.wait)
    with running_app(), engine.engine.watch() as updates:
        while not (ended := await engine.engine.get_run(run.id)) or not ended.status.has_ended:
            await anext(updates)
    assert (ended.status, bytes(ended.output or b"")) == ("Completed", b"45")
    numbers = [int(line) for line in log.read_text().split()]
    assert numbers == [0, 1, 2, 3, 4, 5, *range(5 - repeated, 10)]
