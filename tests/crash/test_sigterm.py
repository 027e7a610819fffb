"""SIGTERM: calls under way have a grace period; the others are made again after the restart."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ..engine.small_app import SmallApp, Steps, serve
from ..ports import free_port
from ..variants import variants
from ..waiting import async_eventually
from .processes import Victim


class Engine:
    """An engine process, and its API."""

    def __init__(self, directory: Path, http: aiohttp.ClientSession) -> None:
        port = free_port()
        self.url, self._http = f"http://127.0.0.1:{port}", http
        self.process = Victim("engine", directory / "engine.log", str(port), str(directory / "engine.db"))

    async def start(self) -> None:
        self.process.start()
        await self.until("/health", lambda answer: True)

    async def until(self, path: str, is_so: Callable[[Any], bool]) -> Any:
        async def look() -> Any:
            async with self._http.get(self.url + path) as response:
                return response.status, await response.json()

        _, answer = await async_eventually(
            look,
            f"{path} has the answer that the test waits for",
            is_right=lambda found: found[0] == 200 and is_so(found[1]),
            ignore=(aiohttp.ClientConnectionError,),
        )
        return answer

    async def post(self, path: str, body: Any) -> Any:
        async with self._http.post(self.url + path, json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def stop(self) -> None:
        self.process.send(signal.SIGTERM)
        assert await asyncio.to_thread(self.process.wait) == 0


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with aiohttp.ClientSession() as http:
        engine = Engine(tmp_path, http)
        await engine.start()
        yield engine
        engine.process.kill()


@pytest.mark.parametrize("finishes", variants([True, False], [False]))
async def test_call_finishes_in_the_grace_period_or_is_repeated(engine: Engine, finishes: bool) -> None:
    app = SmallApp()

    @app.function("slow")
    def slow(steps: Steps) -> str:
        return f"attempt {steps.attempt}"

    async with serve(app):
        await engine.post("/fn/register", app.sync_body())
        app.gate.clear()
        (event_id,) = (await engine.post("/e/any", {"name": "slow"}))["ids"]
        await app.wait_for_calls(1)
        engine.process.send(signal.SIGTERM)
        if finishes:
            app.gate.set()
        # A second signal takes nothing from the time that the first has given.
        await engine.stop()
        app.gate.set()
        await engine.start()
        runs = await engine.until(
            f"/v1/events/{event_id}/runs", lambda found: found["data"][0]["status"] == "Completed"
        )
    assert runs["data"][0]["output"] == "attempt 0"
    assert len(app.calls) == (1 if finishes else 2)


async def test_an_idle_engine_ends_at_once(engine: Engine) -> None:
    """Even where somebody keeps a connection open. The limit is many times what it takes."""
    await engine.until("/health", lambda answer: True)
    async with asyncio.timeout(30):
        await engine.stop()
