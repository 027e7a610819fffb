"""A worker that is killed: ``python -m tests.engine.temporal.faults.worker_process ADDRESS DIARY``.

It serves the app of the crash tests (``tests/crash/app_process.py``), whose diary has each execution of a step, and
functions with limits.
"""

import asyncio
import logging
import sys
from pathlib import Path

import tornado.web
from tests.crash import app_process
from tests.crash.app_process import Diary, define

import durably
import durably.tornado
from durably.embedded import temporal_node
from durably.engine.temporal.runs import calls

from .limited_functions import define_limited
from .storm import APP, FUNCTIONS, LEASE, PATIENCE, READY, SETTINGS


async def main(address: str, diary: Diary) -> None:
    engine = durably.TemporalEngine(address, settings=SETTINGS)
    client = durably.Client(app_id=APP, is_production=False, engine=engine)
    functions = [each for each in define(client, diary) if each.id.removeprefix(f"{APP}-") in FUNCTIONS]
    durably.tornado.serve(tornado.web.Application(), client, [*functions, *define_limited(client, diary)])
    async with engine.running():
        print(READY, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    app_process.PATIENCE = PATIENCE
    calls._HEARTBEAT_TIMEOUT = LEASE
    temporal_node.LONGEST_GAP_SECONDS, temporal_node._BEAT_SECONDS = LEASE.total_seconds() / 3, 0.1
    asyncio.run(main(sys.argv[1], Diary(Path(sys.argv[2]))))
