"""Warnings of an app under ``durably dev`` stand out, even if the app configures no logging."""

from pathlib import Path

from .conftest import Run, Start, write

APP = """
    import random
    import durably
    import durably.fast_api
    import fastapi

    client = durably.Client(app_id="shop")

    @client.create_function(fn_id="roll", trigger=durably.TriggerEvent(event="dice/roll"))
    async def roll(ctx: durably.Context) -> None:
        await ctx.step.run(f"roll-{random.random()}", lambda: 1)
        await ctx.step.sleep("pause", "1s")

    app = fastapi.FastAPI()
    durably.fast_api.serve(app, client, [roll])
"""


def test_a_step_id_that_changes_is_pointed_out(start: Start, run: Run, directory: Path) -> None:
    write(directory / "main.py", APP)
    dev = start("dev", "main:app", "--port", "0", "--app-port", "0", "--no-reload")
    dev.until("main:app is up")
    assert run("send", "dice/roll", DURABLY_DEV=dev.origin).status == 0
    dev.until(r"WARNING: .*shop-roll")
