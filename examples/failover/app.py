"""A shop on several machines: on each this app with the engine in it, and a disk of its own. All share a commit log.

    DURABLY_LOG=postgresql://… uvicorn examples.failover.app:app

``make demo-failover`` runs it on three machines, and kills the leader.
"""

import asyncio
import logging
import os
from datetime import timedelta
from typing import Any

import fastapi

import durably
import durably.fast_api

logging.basicConfig(format="%(message)s")
logging.getLogger("durably").setLevel(logging.INFO)

engine = durably.Embedded(os.environ.get("DATABASE", "shop.db"), log=os.environ["DURABLY_LOG"])
client = durably.Client(app_id="shop", engine=engine)
app = fastapi.FastAPI(title="Shop")


@client.create_function(fn_id="fulfil", trigger=durably.TriggerEvent(event="shop/order.placed"))
async def fulfil(ctx: durably.Context) -> str:
    order = ctx.event.data["order"]
    for step in ("charge", "reserve", "pack", "label", "ship"):
        await ctx.step.run(step, work, step, order)
    return f"order {order} is on its way"


async def work(step: str, order: str) -> None:
    print(f"order {order}: {step}", flush=True)
    await asyncio.sleep(0.7)


@app.post("/orders/{order}", status_code=202)
async def place_order(order: str) -> dict[str, str]:
    [event_id] = await client.send(durably.Event(name="shop/order.placed", data={"order": order}))
    return {"event": event_id}


@app.get("/events/{event_id}")
async def result(event_id: str) -> dict[str, Any]:
    """Wait for the end of the run that the event started."""
    [run] = await engine.event_runs(event_id)
    run = await engine.wait_for_run(run.id, timeout=timedelta(minutes=1))
    return {"run": run.id, "status": run.status, "output": run.decode_output()}


durably.fast_api.serve(app, client, [fulfil])
