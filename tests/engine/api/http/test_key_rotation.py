"""Keys are rotated in the order of docs/how-to/deploy.md while a run is under way, and no call is refused."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

import durably
from durably.engine.model.runs import RunStatus, StepStatus
from durably.engine.model.settings import Durability, EngineSettings
from durably.engine.sqlite.server import serve_database
from durably.protocol.headers import ServerKind

from ....ports import free_port
from .conftest import EVENT_KEY, Harness, ServeFunctions

OLD, NEW = (f"signkey-test-{digits * 16}" for digits in ("01", "ab"))
Keys = tuple[str, str | None]

STAGES: list[tuple[Keys, Keys]] = [
    ((OLD, None), (OLD, None)),
    ((NEW, OLD), (OLD, None)),
    ((NEW, OLD), (NEW, OLD)),
    ((NEW, None), (NEW, OLD)),
    ((NEW, None), (NEW, None)),
]
"""Key and fallback of the app and of the engine."""


async def test_a_run_survives_the_rotation_of_the_signing_key(
    tmp_path: Path, serve_functions: ServeFunctions, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, begun = free_port(), ""
    for app_keys, engine_keys in STAGES:
        monkeypatch.setenv("DURABLY_SIGNING_KEY_FALLBACK", app_keys[1] or "")
        client = durably.Client(
            app_id="shop",
            is_production=True,
            engine=f"http://127.0.0.1:{port}",
            signing_key=app_keys[0],
            event_key=EVENT_KEY,
        )
        url = await serve_functions(client, [make_order(client)])
        async with running_engine(tmp_path / "engine.db", port, engine_keys) as harness:
            await harness.server.discovery.sync(url)  # Signed by the engine, and the answer by the app.
            begun = begun or await start(client, harness, 0)
            await finish(client, harness, await start(client, harness, 1), 1)
            if engine_keys == (NEW, None):
                await finish(client, harness, begun, 0)


def make_order(client: durably.Client) -> durably.Function[object]:
    """Each call hands its steps over to the engine, with the app's key."""

    @client.create_function(fn_id="order", trigger=durably.TriggerEvent(event="order"), retries=0)
    async def order(ctx: durably.Context) -> object:
        before = await ctx.step.run("before", lambda: ctx.event.data["n"])
        await ctx.step.wait_for_event("go", event="go", timeout="1h", if_exp="async.data.n == event.data.n")
        return await ctx.step.run("after", lambda: before)

    return order


@asynccontextmanager
async def running_engine(database: Path, port: int, keys: Keys) -> AsyncIterator[Harness]:
    settings = EngineSettings(
        server_kind=ServerKind.CLOUD,
        signing_key=keys[0],
        signing_key_fallback=keys[1],
        durability=Durability.NORMAL,
    )
    server = await serve_database(database, settings, port=port, event_keys=[EVENT_KEY])
    async with server, aiohttp.ClientSession(server.origin) as http:
        yield Harness(server, http, [])


async def start(client: durably.Client, harness: Harness, n: int) -> str:
    """The id of a new run, once it waits."""
    [event_id] = await client.send(durably.Event(name="order", data={"n": n}))
    run_id = (await harness.run_of(event_id)).id
    with harness.engine.watch() as updates:
        while not any(step.status is StepStatus.WAITING for step in await harness.engine.run_steps(run_id)):
            await anext(updates)
    return run_id


async def finish(client: durably.Client, harness: Harness, run_id: str, n: int) -> None:
    await client.send(durably.Event(name="go", data={"n": n}))
    ended = await harness.ended(run_id)
    assert (ended.status, ended.decode_output()) == (RunStatus.COMPLETED, n)
