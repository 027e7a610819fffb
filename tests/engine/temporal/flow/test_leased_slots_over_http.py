"""Concurrency limits without a key, of an app that is called over HTTP by several engines."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client as TemporalClient

import durably.fast_api
from durably import Client, Concurrency, Context, Event, Function, TriggerEvent
from durably.engine.temporal.ids import run_workflow_id

from ....conformance.temporal_engine import open_engine
from ....temporal.dev_server import DevServer
from ....waiting import async_eventually
from .conftest import Limit
from .test_queues import event_counts


@asynccontextmanager
async def served(client: Client, *functions: Function[object]) -> AsyncIterator[str]:
    app = FastAPI()
    durably.fast_api.serve(app, client, list(functions))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    task = asyncio.create_task(server.serve())
    await async_eventually(lambda: server.started, "uvicorn has started")
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/api/inngest"
    server.should_exit = True
    await task


async def test_engines_of_several_processes_share_the_slots(server: DevServer) -> None:
    """The second engine finds the app by itself, and makes the waiting calls when the first stops."""
    limit, run_ids, app_id = Limit(), dict[int, str](), f"http-{uuid.uuid4().hex[:8]}"
    first = await open_engine(server.address)
    client = Client(app_id=app_id, is_production=False, engine=first.origin)

    @client.create_function(
        fn_id="work", trigger=TriggerEvent(event=f"{app_id}/work"), concurrency=[Concurrency(limit=1)], retries=0
    )
    async def work(ctx: Context) -> None:
        number = ctx.event.data["n"]
        run_ids[number] = ctx.run_id
        await ctx.step.run("wait", lambda: limit.pass_through(number))

    async with served(client, work) as url:
        await first.discovery.sync(url)
        await client.send([Event(name=f"{app_id}/work", data={"n": n}) for n in range(4)])
        await limit.wait_until(lambda: len(limit.inside) == 1)
        async with await open_engine(server.address):
            stopped = asyncio.create_task(first.close())
            limit.let_go(limit.inside[0])
            await stopped
            limit.open()
            await limit.wait_until(lambda: len(limit.entered) == 4 and not limit.inside)
            assert sorted(limit.entered) == [0, 1, 2, 3]
            assert limit.most_inside == 1
    temporal = await TemporalClient.connect(server.address)
    for run_id in run_ids.values():
        counts = await event_counts(temporal.get_workflow_handle(run_workflow_id(run_id)))
        assert counts[EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED] == 0, "no queue granted a slot"
