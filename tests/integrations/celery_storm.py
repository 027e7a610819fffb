"""Runs a chain of tasks in a process that is killed in the middle of it.

    python -m tests.integrations.celery_storm DIRECTORY

The first process sends the chain, and dies in its third task. Another process of the same command ends it.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

import celery

import durably
from durably.comm import CommHandler
from durably.integrations.celery import functions

TASKS = 5
DIES_AT = 3


async def live(directory: Path) -> None:
    app = celery.Celery("storm", broker="amqp://nobody@127.0.0.1:1//", set_as_current=False)
    log = directory / "log"
    is_first = not log.exists()

    @app.task(shared=False, name="count")
    def count(number: int) -> int:
        with log.open("a") as file:
            file.write(f"{number}\n")
        if is_first and number == DIES_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return number + 1

    engine = durably.Embedded(directory / "durably.db")
    client = durably.Client(app_id="storm", engine=engine)
    CommHandler(client=client, framework="storm", functions=functions(app, client))
    async with engine.running():
        if is_first:
            links = [count.s(1), *(count.s() for _ in range(TASKS - 1))]
            options = {"task_id": "last"}
            await asyncio.to_thread(lambda: celery.chain(*links, app=app).apply_async(**options))
        while len(await engine.list_runs()) < TASKS:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        result = await asyncio.to_thread(app.AsyncResult("last").get, timeout=60)
        assert result == TASKS + 1, result


if __name__ == "__main__":
    asyncio.run(live(Path(sys.argv[1])))
