"""The app, the engine, or both are killed while a run is asked: it gets each message once, and each gets its reply."""

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from durably import Client
from durably.errors import AskTimeoutError

from ..crash.processes import Victim, until_succeeded
from ..ports import free_port
from .storm_app import ledger

ASKERS = 4


@pytest.mark.parametrize("blows", [4, pytest.param(40, marks=pytest.mark.slow)])
async def test_each_message_is_received_once_and_replied_to(tmp_path: Path, blows: int) -> None:
    seed = int(os.environ.get("CRASH_SEED", "27"))
    chance = random.Random(seed)
    engine_port, app_port = free_port(), free_port()
    origin, app_url = f"http://127.0.0.1:{engine_port}", f"http://127.0.0.1:{app_port}/api/inngest"
    engine = Victim("engine", tmp_path / "engine.log", str(engine_port), str(tmp_path / "engine.db"))
    app = Victim("app", tmp_path / "app.log", str(app_port), module="tests.questions.storm_app", DURABLY_DEV=origin)
    client = Client(app_id="storm", is_production=False, api_base_url=origin, event_api_base_url=origin)
    replies: dict[str, Any] = {}
    is_over = False

    async def ask(asker: int) -> None:
        number = 0
        while not is_over:
            text = f"{asker}-{number}"
            number += 1
            await ask_until_replied(text)
            await asyncio.sleep(0.03 * blows)  # A run has at most a thousand steps.

    async def ask_until_replied(text: str) -> None:
        while text not in replies:
            try:
                replies[text] = await handle.ask(
                    "command", text, id=text, timeout=chance.choice(["50ms", "500ms", "5s"])
                )
            except AskTimeoutError:
                continue

    engine.start()
    app.start()
    try:
        async with aiohttp.ClientSession() as http, asyncio.timeout(60 + 6 * blows):
            await until_succeeded(http.put, app_url)
            handle = await ledger.start(client=client)
            async with asyncio.TaskGroup() as askers:
                for asker in range(ASKERS):
                    askers.create_task(ask(asker))
                for _ in range(blows):
                    await until_succeeded(http.get, f"{origin}/health")
                    await until_succeeded(http.get, app_url)
                    await asyncio.sleep(chance.uniform(0.02, 0.5))
                    victims = chance.choice([[engine], [app], [engine, app]])
                    for victim in victims:
                        victim.send(chance.choice([signal.SIGKILL, signal.SIGTERM]))
                        await asyncio.to_thread(victim.wait)
                        victim.start()
                is_over = True
            await ask_until_replied("stop")
            received = await handle.result()
    finally:
        engine.kill()
        app.kill()
    assert len(received) == len(set(received))
    assert {text: [place, text] for place, text in enumerate(received, 1)} == replies
