"""Records histories of this version: ``python -m tests.engine.temporal.histories FOLDER``.

The folder is named after the version, such as ``tests/engine/temporal/histories/1.0``.
"""

import asyncio
import base64
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

import durably
from durably.functions.function import Function

from ....temporal.dev_server import DevServer
from ....waiting import async_eventually
from ..running_apps import RunningApp, on, running

_PROCESS = re.compile(r"\b\d+@[\w.-]+")
_ROOT = str(Path(__file__).parents[4])


def make_functions(app: durably.Client) -> list[Function[Any]]:
    """Functions that reach each command of the run machine that needs no other server."""
    attempts = 0

    @app.create_function(fn_id="child", trigger=on(app, "child"))
    async def child(ctx: durably.Context) -> int:
        return await ctx.step.run("double", lambda: 4)

    @app.create_function(fn_id="bad", trigger=on(app, "bad"), retries=0)
    async def bad(ctx: durably.Context) -> None:
        raise ValueError("no")

    @app.create_function(fn_id="all", trigger=on(app, "all"))
    async def everything(ctx: durably.Context) -> Any:
        def flaky() -> str:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                raise ValueError("once")
            return "flaky"

        found: list[Any] = [await ctx.step.run("flaky", flaky)]
        found += await asyncio.gather(*(ctx.step.run(f"p{n}", lambda: 1) for n in range(3)))
        await ctx.step.sleep("nap", "10ms")
        found.append(await ctx.step.invoke("ask", function=child))
        try:
            await ctx.step.invoke("ask-bad", function=bad)
        except durably.StepError as error:
            found.append(error.message)
        condition = "event.data.n == async.data.n"
        event = await ctx.step.wait_for_event("go", event=f"{app.app_id}/go", if_exp=condition, timeout="1h")
        found.append(event is not None)
        found.append(await ctx.step.wait_for_signal("signal", signal=f"{app.app_id}-signal", timeout="10ms"))
        return found

    @app.create_function(fn_id="calls", trigger=on(app, "calls"), checkpointing=False)
    async def calls(ctx: durably.Context) -> int:
        return await ctx.step.run("a", lambda: 1) + await ctx.step.run("b", lambda: 2)

    @app.create_function(fn_id="cancelled", trigger=on(app, "cancelled"))
    async def cancelled(ctx: durably.Context) -> None:
        await ctx.step.sleep("long", "1h")

    return [child, bad, everything, calls, cancelled]


async def record() -> dict[str, bytes]:
    """The files of the recorded histories."""
    server = DevServer()
    server.start()
    try:
        app = durably.Client(app_id="golden", is_production=False, engine="http://localhost:1")
        async with running(server.address, app, *make_functions(app)) as on_temporal:
            await _run(on_temporal)
            return await _read(on_temporal)
    finally:
        server.kill()


async def _run(on_temporal: RunningApp) -> None:
    everything = await on_temporal.start("all", {"n": 1})
    for function in ("calls", "child"):
        await (await on_temporal.start(function)).result()
    cancelled = await on_temporal.start("cancelled")
    await async_eventually(cancelled.event_types, "a timer is set", is_right=lambda types: "TIMER_STARTED" in types)
    await on_temporal.engine.cancel_run(cancelled.id)
    await async_eventually(
        everything.event_types, "three markers are recorded", is_right=lambda types: types.count("MARKER_RECORDED") >= 3
    )
    await on_temporal.start("go", {"n": 1})
    print(await everything.result())


async def _read(on_temporal: RunningApp) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for number, workflow_id in enumerate(sorted([each.id async for each in on_temporal.client.list_workflows()])):
        history = await on_temporal.client.get_workflow_handle(workflow_id).fetch_history()
        anonymous = _anonymise(msgspec.json.decode(history.to_json()))
        encoded = msgspec.json.format(msgspec.json.encode(anonymous), indent=1)
        files[f"{number:02}-{workflow_id.split('/')[1]}.json"] = encoded + b"\n"
    return files


def _anonymise(value: Any) -> Any:
    """The history without the names of this machine's process, host and folders."""
    if isinstance(value, list):
        return [_anonymise(each) for each in value]
    if isinstance(value, str):
        return _PROCESS.sub("recorder", value.replace(_ROOT, "/app"))
    if not isinstance(value, dict):
        return value
    anonymous = {name: _anonymise(each) for name, each in value.items()}
    if isinstance(anonymous.get("data"), str) and "metadata" in anonymous:
        data = base64.b64decode(anonymous["data"]).replace(_ROOT.encode(), b"/app")
        anonymous["data"] = base64.b64encode(data).decode()
    return anonymous


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    for name, content in asyncio.run(record()).items():
        (target / name).write_bytes(content)
