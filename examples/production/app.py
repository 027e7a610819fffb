"""The app of docs/how-to/deploy.md: gunicorn serves it, an engine of its own calls its functions.

Where the engine is and the keys are settings of the environment; the code is the same as in development::

    durably dev examples.production.app:app
"""

import datetime as dt

import fastapi

import durably
import durably.fast_api
from durably.errors import SendEventsError

client = durably.Client(app_id="shop", app_version="1.0")


def charge(order_id: str) -> str:
    return f"receipt of order {order_id}"


@client.create_function(fn_id="fulfil", trigger=durably.TriggerEvent(event="shop/order.placed"))
async def fulfil(ctx: durably.Context) -> str:
    receipt = await ctx.step.run("charge", charge, str(ctx.event.data["order_id"]))
    await ctx.step.sleep("pack", dt.timedelta(seconds=1))
    return receipt


app = fastapi.FastAPI()


@app.post("/orders/{order_id}", status_code=202)
async def place_order(order_id: str) -> dict[str, str]:
    try:
        [event_id] = await client.send(durably.Event(name="shop/order.placed", data={"order_id": order_id}))
    except SendEventsError as error:  # The engine is down: the shop may try again.
        raise fastapi.HTTPException(503, "orders cannot be taken at the moment") from error
    return {"event": event_id}


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


durably.fast_api.serve(app, client, [fulfil])
