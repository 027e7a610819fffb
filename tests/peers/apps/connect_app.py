"""Functions of the official Python SDK, served by its worker over a connection to the engine."""

import asyncio
import datetime as dt
import os

import inngest
from inngest.connect import connect

client = inngest.Inngest(app_id=os.environ["PEER_APP_ID"], is_production="INNGEST_SIGNING_KEY" in os.environ)


@client.create_function(fn_id="steps", trigger=inngest.TriggerEvent(event=f"{client.app_id}/steps"))
async def steps(ctx: inngest.Context) -> list[int]:
    one = await ctx.step.run("one", _number, 1)
    await ctx.step.sleep("rest", dt.timedelta(milliseconds=50))
    two = await ctx.group.parallel((lambda: ctx.step.run("a", _number, one + 1), lambda: ctx.step.run("b", _number, 3)))
    return [one, *two]


@client.create_function(fn_id="fail", retries=0, trigger=inngest.TriggerEvent(event=f"{client.app_id}/fail"))
async def fail(ctx: inngest.Context) -> None:
    raise LookupError("no more")


@client.create_function(
    fn_id="retry-after", retries=1, trigger=inngest.TriggerEvent(event=f"{client.app_id}/retry-after")
)
async def retry_after(ctx: inngest.Context) -> int:
    if ctx.attempt == 0:
        raise inngest.RetryAfterError("soon", dt.timedelta(seconds=1))
    return ctx.attempt


@client.create_function(fn_id="slow", retries=0, trigger=inngest.TriggerEvent(event=f"{client.app_id}/slow"))
async def slow(ctx: inngest.Context) -> str:
    await asyncio.sleep(float(str(ctx.event.data["seconds"])))
    return "done"


async def _number(number: int) -> int:
    return number


asyncio.run(connect([(client, [steps, fail, retry_after, slow])], instance_id="official").start())
