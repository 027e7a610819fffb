"""An app that dies once, by SIGKILL, in the middle of a step; run by ``test_checkpoint_crashes``."""

import os
import signal
from pathlib import Path

from fastapi import FastAPI

import durably
import durably.fast_api
from durably import Checkpointing, Context, ContextSync

STEPS = 10
LOG = Path(os.environ["DYING_APP_LOG"])
client = durably.Client(
    app_id="app", checkpointing=Checkpointing(buffered_steps=int(os.environ["DYING_APP_BUFFERED_STEPS"]))
)
EVENT = durably.TriggerEvent(event="go")


def work(number: int) -> int:
    with LOG.open("a") as log:
        log.write(f"{number}\n")
    if number == STEPS // 2 and LOG.read_text().count(f"{number}\n") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@client.create_function(fn_id="async", trigger=EVENT)
async def in_async(ctx: Context) -> int:
    return sum([await ctx.step.run(f"step {number}", work, number) for number in range(STEPS)])


@client.create_function(fn_id="sync", trigger=EVENT)
def in_sync(ctx: ContextSync) -> int:
    return sum([ctx.step.run(f"step {number}", work, number) for number in range(STEPS)])


app = FastAPI()
durably.fast_api.serve(app, client, [{"async": in_async, "sync": in_sync}[os.environ["DYING_APP_FUNCTION"]]])
