"""Workers with a limit that are killed and stopped: ``python -m tests.engine.temporal.slots.limit_process ADDRESS APP
STAMPS LIMIT``.

Each line of its input starts a worker in a child, which is forked because imports take long; its id is printed. Each
execution of a step writes the time of its start and of its end.
"""

import asyncio
import gc
import os
import random
import signal
import sys
import time
import uuid
from typing import Any

import tornado.web

import durably
import durably.tornado
from durably.embedded import temporal_node
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.runs import run_calls
from durably.engine.temporal.slots import lease_time

from ....crash.engine_process import backoff
from .storm import HEARTBEAT, LEASE_SECONDS, STEPS, USE_SECONDS


class Stamps:
    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, kind: str, call: str) -> None:
        os.write(self._file, f"{kind} {os.getpid()} {call} {time.monotonic()}\n".encode())


def define(client: durably.Client, stamps: Stamps, limit: int) -> durably.Function[Any]:
    @client.create_function(
        fn_id="work",
        trigger=durably.TriggerEvent(event=f"{client.app_id}/work"),
        concurrency=[durably.Concurrency(limit=limit)],
        retries=20,
    )
    async def work(ctx: durably.Context) -> None:
        call = uuid.uuid4().hex

        async def execute() -> None:
            stamps.write("start", call)
            await asyncio.sleep(random.choices((0.05, 0.8), (4, 1))[0])
            stamps.write("end", call)

        for number in range(STEPS):
            await ctx.step.run(f"step-{number}", execute)

    return work


async def run_worker(address: str, app: str, stamps: str, limit: str) -> None:
    engine = durably.TemporalEngine(address, settings=EngineSettings(backoff=backoff))
    client = durably.Client(app_id=app, is_production=False, engine=engine)
    durably.tornado.serve(tornado.web.Application(), client, [define(client, Stamps(stamps), int(limit))])
    async with engine.running():
        await asyncio.Event().wait()


def main() -> None:
    lease_time.USE_SECONDS, lease_time.LEASE_SECONDS = USE_SECONDS, LEASE_SECONDS
    run_calls._HEARTBEAT_TIMEOUT = HEARTBEAT
    temporal_node.LONGEST_GAP_SECONDS, temporal_node._BEAT_SECONDS = USE_SECONDS / 2, 0.1
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            random.seed()
            os.dup2(2, 1)  # The runtime of temporalio logs to its output.
            asyncio.run(run_worker(*sys.argv[1:]))
        print(child, flush=True)


if __name__ == "__main__":
    main()
