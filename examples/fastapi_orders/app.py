"""A shop: one durable function takes an order from payment to delivery.

    durably dev examples.fastapi_orders.app:app

then place an order:

    curl -X POST localhost:8000/orders -H 'content-type: application/json' -d '{"id": "A-1", "total": 42}'
    curl -X POST localhost:8000/orders/A-1/delivered
"""

import asyncio
import datetime as dt

import fastapi
import pydantic

import durably
import durably.fast_api

client = durably.Client(app_id="shop")
app = fastapi.FastAPI(title="Shop")


class Order(pydantic.BaseModel):
    id: str
    total: int


class Delivered(pydantic.BaseModel):
    id: str
    signed_by: str = "unknown"


order_placed = durably.EventType("shop/order.placed", Order)
order_delivered = durably.EventType("shop/order.delivered", Delivered)


@client.create_function(fn_id="fulfil-order", trigger=order_placed.trigger())
async def fulfil_order(ctx: durably.Context) -> dict[str, object]:
    order = order_placed.data(ctx.event)

    payment = await ctx.step.run("charge-card", charge_card, order.id, order.total, attempt=ctx.attempt)
    ctx.logger.info("order %s is paid: %s", order.id, payment)

    # Two steps at once. If one fails, it alone is tried again.
    receipt, stock = await asyncio.gather(
        ctx.step.run("send-receipt", send_receipt, order.id),
        ctx.step.run("reserve-stock", reserve_stock, order.id),
    )

    # Nothing is kept in memory while the function sleeps or waits, be it for days.
    await ctx.step.sleep("let-the-parcel-travel", dt.timedelta(seconds=2))
    delivery = await ctx.step.wait_for_event(
        "delivery",
        event=order_delivered.name,
        if_exp="async.data.id == event.data.id",
        timeout=dt.timedelta(days=14),
    )
    if delivery is None:
        return {"order": order.id, "status": "lost", "payment": payment}
    signed_by = order_delivered.data(delivery).signed_by
    return {
        "order": order.id,
        "status": "delivered",
        "signed_by": signed_by,
        "payment": payment,
        "receipt": receipt,
        "stock": stock,
    }


async def charge_card(order_id: str, total: int, *, attempt: int) -> str:
    if attempt == 0:
        raise ConnectionError("the payment provider hung up")
    return f"paid {total} for {order_id}"


async def send_receipt(order_id: str) -> str:
    await asyncio.sleep(0.1)
    return f"receipt-{order_id}.pdf"


async def reserve_stock(order_id: str) -> str:
    await asyncio.sleep(0.1)
    return f"shelf 7 for {order_id}"


@app.post("/orders", status_code=202)
async def place_order(order: Order) -> dict[str, str]:
    [event_id] = await client.send(order_placed(order))
    return {"event": event_id}


@app.post("/orders/{order_id}/delivered", status_code=202)
async def deliver(order_id: str, signed_by: str = "the neighbour") -> dict[str, str]:
    [event_id] = await client.send(order_delivered(Delivered(id=order_id, signed_by=signed_by)))
    return {"event": event_id}


durably.fast_api.serve(app, client, [fulfil_order])
