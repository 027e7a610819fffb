"""A shop's orders, written for the ``inngest`` package, and moved to Durably by changing its import.

Nothing below the import knows which package it is. Run it with Durably, and then with the official SDK:

    durably dev examples.migrate.app:app
    MIGRATE_TO=inngest durably dev examples.migrate.app:app
    durably send shop/order.placed --data '{"id": 7, "items": ["tea", "milk"], "email": "ada@example.com"}'
    durably send shop/payment.received --data '{"order": 7, "amount": 1250}'
"""

import datetime as dt
import os
from functools import partial
from typing import Any

import fastapi
import pydantic

if os.environ.get("MIGRATE_TO", "durably") == "durably":
    import durably as inngest
    import durably.fast_api as framework
else:
    import inngest  # type: ignore[no-redef]
    import inngest.fast_api as framework  # type: ignore[no-redef]


class Receipt(pydantic.BaseModel):
    order: int
    amount: int
    day: dt.date


class Audit(inngest.MiddlewareSync):
    """Counts what the shop sends, and marks the events that it receives."""

    sent = 0

    def transform_input(self, ctx: Any, function: Any, steps: Any) -> None:
        ctx.event.data = {**ctx.event.data, "audited": True}

    def before_send_events(self, events: list[inngest.Event]) -> None:
        Audit.sent += len(events)


client = inngest.Inngest(
    app_id="shop",
    is_production=False,
    middleware=[Audit],
    serializer=inngest.PydanticSerializer(),
)
failures: set[str] = set()


def fails_once(what: str) -> bool:
    """Whether this is the first time, and so the time to fail."""
    if what in failures:
        return False
    failures.add(what)
    return True


async def load_prices(items: list[str]) -> dict[str, int]:
    return {item: 100 * len(item) for item in items}


async def reserve(order: int, item: str) -> str:
    if item == "unicorn":
        raise LookupError("unicorns are out of stock")
    if fails_once(f"{order}/{item}"):
        raise ConnectionError(f"the warehouse does not answer for {item}")
    return f"{item} reserved"


async def make_receipt(order: int, amount: int) -> Receipt:
    return Receipt(order=order, amount=amount, day=dt.date(2026, 1, 2))


async def tell_of_failure(ctx: inngest.Context) -> str:
    error: Any = ctx.event.data["error"]

    async def write() -> str:
        return f"order failed: {error['message']}"

    return await ctx.step.run("write", write)


@client.create_function(
    fn_id="receipt",
    trigger=inngest.TriggerEvent(event="shop/receipt.wanted"),
    output_type=Receipt,
)
async def receipt(ctx: inngest.Context) -> Receipt:
    order, amount = int(str(ctx.event.data["order"])), int(str(ctx.event.data["amount"]))
    return await ctx.step.run("make", make_receipt, order, amount, output_type=Receipt)


@client.create_function(
    fn_id="order",
    name="Take an order",
    trigger=inngest.TriggerEvent(event="shop/order.placed", expression="event.data.id > 0"),
    retries=2,
    on_failure=tell_of_failure,
)
async def order(ctx: inngest.Context) -> Any:
    data: Any = ctx.event.data
    if not data["items"]:
        raise inngest.NonRetriableError("an order needs items")
    prices = await ctx.step.run("prices", load_prices, data["items"])
    reserved = await ctx.group.parallel(
        tuple(partial(ctx.step.run, "reserve", reserve, data["id"], item) for item in data["items"])
    )
    await ctx.step.sleep("cool off", dt.timedelta(seconds=1))
    paid = await ctx.step.wait_for_event(
        "payment",
        event="shop/payment.received",
        if_exp="event.data.id == async.data.order",
        timeout=dt.timedelta(seconds=30),
    )
    if paid is None:
        return {"status": "cancelled", "audited": data["audited"]}
    amount = sum(prices.values())
    printed = await ctx.step.invoke("receipt", function=receipt, data={"order": data["id"], "amount": amount})
    await ctx.step.send_event("report", inngest.Event(name="shop/order.done", data={"order": data["id"]}))
    return {
        "status": "done",
        "audited": data["audited"],
        "reserved": list(reserved),
        "paid": paid.data["amount"],
        "receipt": printed.model_dump(mode="json"),
        "attempt": ctx.attempt,
    }


def send_mail(order: int) -> str:
    if fails_once(f"mail for {order}"):
        raise inngest.RetryAfterError("the mail server is busy", 1000)
    return f"mail for order {order}"


@client.create_function(fn_id="done", trigger=inngest.TriggerEvent(event="shop/order.done"))
def done(ctx: inngest.ContextSync) -> str:
    """A sync function beside async ones."""
    return ctx.step.run("mail", send_mail, int(str(ctx.event.data["order"])))


app = fastapi.FastAPI()
framework.serve(app, client, [order, receipt, done])
