"""``make demo``: the engine, a FastAPI app and real HTTP between them; one order from payment to delivery.

Starts the embedded engine and ``examples/fastapi_orders`` as ``durably dev`` does, places an order through the
app's own endpoint, prints what happens to the run as it happens, reports the delivery once the run waits for
it, and prints the output and the dashboard's link. On a terminal it then waits for Ctrl-C, so that the link works.

With ``--stay`` (``make dev``) it also serves ``examples/showcase``, which has runs of every kind to look at.
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
import webbrowser
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from durably.cli.child_process import AppProcess, free_port
from durably.cli.dev import DevOptions, DevServer
from durably.cli.run_text import Activity
from durably.engine.model.runs import RunUpdate, UpdateKind
from durably.errors import Error

from .showcase.events import send_events

ORDER = {"id": "A-1", "total": 42}
ENDS = (UpdateKind.RUN_COMPLETED, UpdateKind.RUN_FAILED, UpdateKind.RUN_CANCELLED)


async def main(*, stay: bool, port: int = 8288, app_port: int = 8000) -> int:
    with tempfile.TemporaryDirectory() as directory:
        options = DevOptions(
            target="examples.fastapi_orders.app:app",
            port=port if stay else 0,
            app_port=app_port if stay else 0,
            database=Path(directory) / "demo.db",
            reload=stay,
        )
        async with DevServer(options) as dev:
            if stay:
                return await stay_up(dev)
            end = await follow_order(dev)
            dev.console.say("")
            dev.console.say(f"Look at the run: {dev.server.origin}/runs/{end.run_id}")
            if sys.stdout.isatty():
                dev.console.say("Ctrl-C ends the demo.")
                await asyncio.Event().wait()
    return 0 if end.kind is UpdateKind.RUN_COMPLETED else 1


@contextlib.asynccontextmanager
async def back_office(dev: DevServer) -> AsyncIterator[None]:
    """A second app, with runs of every kind."""
    host = dev.options.host
    app = AppProcess(
        "examples.showcase.app:app", host=host, port=free_port(host), path=None, engine_origin=dev.server.origin
    )
    await app.start()
    try:
        await app.sync(dev.server.discovery)
        await send_events(dev.engine)
        yield
    finally:
        await app.stop()


async def stay_up(dev: DevServer) -> int:
    """Run the order and the back office, and then print the links, until Ctrl-C."""
    with contextlib.suppress(asyncio.CancelledError):
        running = asyncio.create_task(dev.run())  # It prints what happens to runs.
        try:
            end = await follow_order(dev, prints=False)
            async with back_office(dev):
                dev.console.say("")
                dev.console.say("Still up: examples/fastapi_orders/app.py says what to try. Ctrl-C ends it.")
                dev.console.say(f"Look at the run: {dev.server.origin}/runs/{end.run_id}")
                dev.console.say(f"Runs of every kind: {dev.server.origin}/")
                if sys.stdout.isatty():
                    webbrowser.open(f"{dev.server.origin}/")
                await running
        finally:
            running.cancel()
    return 0


async def follow_order(dev: DevServer, *, prints: bool = True) -> RunUpdate:
    """Place an order, deliver it when the run waits for that, and return the run's last update.

    ``prints`` is whether to print the updates.
    """
    assert dev.app is not None
    activity = Activity()
    async with aiohttp.ClientSession(dev.app.origin) as shop:
        with dev.engine.watch() as updates:
            dev.console.say("")
            dev.console.say(f"POST /orders {ORDER}")
            await post(shop, "/orders", json=ORDER)
            async for update in updates:
                if prints:
                    dev.console.say(activity.format(update))
                if update.kind is UpdateKind.WAITING:
                    dev.console.say("POST /orders/A-1/delivered")
                    await post(shop, "/orders/A-1/delivered")
                if update.kind in ENDS:
                    if update.output is not None:
                        dev.console.say("")
                        dev.console.say(f"Output: {bytes(update.output).decode()}")
                    return update
    raise RuntimeError("the engine stopped before the run ended")


async def post(shop: aiohttp.ClientSession, path: str, json: object = None) -> None:
    async with shop.post(path, json=json) as response:
        response.raise_for_status()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run one order on the embedded engine and show what happens.")
    parser.add_argument("--stay", action="store_true", help="stay up afterwards")
    parser.add_argument("--port", type=int, default=8288, help="the engine's port with --stay")
    parser.add_argument("--app-port", type=int, default=8000, help="the app's port with --stay; 0 takes a free one")
    arguments = parser.parse_args()
    try:
        sys.exit(asyncio.run(main(stay=arguments.stay, port=arguments.port, app_port=arguments.app_port)))
    except Error as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(0)
