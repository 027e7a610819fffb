"""The app of the storms: ``python -m tests.questions.storm_app PORT``, with ``DURABLY_DEV`` naming the engine."""

import asyncio
import sys

from durably import Client, Context

from .engines import serving

client = Client(app_id="storm")


@client.create_function(fn_id="ledger", trigger=[], retries=20, checkpointing=True)
async def ledger(ctx: Context) -> list[str]:
    """Receives commands, and replies to each with its place."""
    received: list[str] = []
    while "stop" not in received:
        question = await ctx.step.receive("command", type=str)
        received.append(question.data)
        place = await ctx.step.run("count", lambda: len(received))
        await question.reply([place, question.data])
    return received


async def main(port: int) -> None:
    async with serving(client, [ledger], port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
