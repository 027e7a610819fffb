"""An app for ``durably worker --connect``. Its calls write lines to the file of ``CALLS_FILE``."""

import asyncio
import os
import time

import durably

client = durably.Client(app_id="connected")


def note(line: str) -> None:
    with open(os.environ["CALLS_FILE"], "a") as file:
        file.write(f"{line}\n")


async def _add(a: int, b: int) -> int:
    return a + b


@client.create_function(fn_id="steps", trigger=durably.TriggerEvent(event="steps"))
async def steps(ctx: durably.Context) -> list[int]:
    one = await ctx.step.run("one", _add, 0, 1)
    await ctx.step.sleep("rest", "10ms")
    return [one, *await asyncio.gather(ctx.step.run("a", _add, one, 1), ctx.step.run("b", _add, one, 2))]


@client.create_function(fn_id="slow", retries=1, trigger=durably.TriggerEvent(event="slow"))
def slow(ctx: durably.ContextSync) -> int:
    note(f"begin {ctx.run_id}")
    time.sleep(float(str(ctx.event.data["seconds"])))
    note(f"end {ctx.run_id}")
    return ctx.attempt


if __name__ == "__main__":
    asyncio.run(durably.connect([(client, [steps, slow])]).start())
