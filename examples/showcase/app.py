"""A shop's back office: functions whose runs show everything that a run can do.

    durably dev examples.showcase.app:app

``make dev`` starts it, and sends the events of ``events.py``.
"""

import asyncio
import datetime as dt
from typing import Any

import fastapi

import durably
import durably.fast_api

client = durably.Client(app_id="back-office", app_version="2026.11.2")
app = fastapi.FastAPI(title="Back office")


@client.create_function(
    fn_id="import-catalogue",
    name="Import the catalogue",
    trigger=durably.TriggerEvent(event="catalogue/published"),
    concurrency=[durably.Concurrency(limit=2, key="event.data.supplier")],
)
async def import_catalogue(ctx: durably.Context) -> dict[str, int]:
    """Many steps, one after the other."""
    count = 0
    for page in range(1, int(ctx.event.data["pages"]) + 1):
        count += await ctx.step.run(f"import-page-{page}", import_page, page)
    ctx.logger.info("imported %d products", count)
    return {"pages": page, "products": count}


async def import_page(page: int) -> int:
    await asyncio.sleep(0.003)
    return 40 + page % 7


@client.create_function(
    fn_id="pack-parcel", name="Pack a parcel", trigger=durably.TriggerEvent(event="parcel/requested")
)
async def pack_parcel(ctx: durably.Context) -> dict[str, Any]:
    """Steps at once, and runs that it starts and waits for."""
    order = str(ctx.event.data["order"])
    ctx.logger.info("packing the parcel of %s", order)
    weights = await asyncio.gather(
        *(ctx.step.run(f"weigh-{item['sku']}", weigh, item) for item in ctx.event.data["items"])
    )
    box = await ctx.step.run("choose-box", choose_box, sum(weights))
    labels = await asyncio.gather(
        ctx.step.invoke("address-label", function=print_label, data={"order": order, "kind": "address"}),
        ctx.step.invoke("customs-label", function=print_label, data={"order": order, "kind": "customs"}),
    )
    await ctx.step.sleep("let-the-glue-dry", dt.timedelta(seconds=1))
    await ctx.step.run("hand-to-carrier", hand_to_carrier, attempt=ctx.attempt)
    return {"order": order, "box": box, "weight": sum(weights), "labels": labels}


async def weigh(item: dict[str, Any]) -> int:
    await asyncio.sleep(item["grams"] / 1000)
    return int(item["grams"])


async def choose_box(grams: int) -> str:
    await asyncio.sleep(0.05)
    return "large" if grams > 500 else "small"


async def hand_to_carrier(*, attempt: int) -> str:
    await asyncio.sleep(0.2)
    if attempt == 0:
        raise durably.RetryAfterError("the carrier's van has left; the next comes in a second", 1000)
    return "JD014600003SE"


@client.create_function(
    fn_id="print-label", name="Print a label", trigger=durably.TriggerEvent(event="label/requested")
)
async def print_label(ctx: durably.Context) -> str:
    return await ctx.step.run("render", render_label, ctx.event.data["order"], ctx.event.data["kind"])


async def render_label(order: str, kind: str) -> str:
    await asyncio.sleep(0.3 if kind == "customs" else 0.15)
    return f"{order}-{kind}.pdf"


@client.create_function(
    fn_id="settle-invoice",
    name="Settle an invoice",
    trigger=durably.TriggerEvent(event="invoice/received"),
    retries=2,
    rate_limit=durably.RateLimit(limit=100, period=dt.timedelta(minutes=1)),
)
async def settle_invoice(ctx: durably.Context) -> str:
    """Fails for an invoice in a currency without a rate."""
    invoice = ctx.event.data
    ctx.logger.info("settling %s", invoice["number"])
    approver = await ctx.step.run("find-approver", find_approver, invoice["amount"])
    amount = await ctx.step.run("convert-to-euros", convert, invoice["amount"], invoice["currency"])
    await ctx.step.run("pay", pay, invoice["number"], amount)
    return f"{invoice['number']}: {amount:.2f} EUR, approved by {approver}"


RATES = {"EUR": 1.0, "USD": 0.92, "GBP": 1.17}


async def find_approver(amount: float) -> str:
    await asyncio.sleep(0.05)
    return "Ada" if amount > 1000 else "Grace"


async def convert(amount: float, currency: str) -> float:
    await asyncio.sleep(0.02)
    return amount * rate_of(currency)


def rate_of(currency: str) -> float:
    return RATES[currency]


async def pay(number: str, amount: float) -> str:
    await asyncio.sleep(0.08)
    return f"payment of {number}"


@client.create_function(
    fn_id="update-accounts", name="Update the accounts", trigger=durably.TriggerEvent(event="invoice/settled")
)
async def update_accounts(ctx: durably.Context) -> None:
    """Is tried again for as long as it has attempts left."""
    await ctx.step.run("post-entry", post_entry)


async def post_entry() -> None:
    raise durably.RetryAfterError("the accounting system is closed for maintenance", dt.timedelta(minutes=20))


@client.create_function(
    fn_id="ask-for-review",
    name="Ask for a review",
    trigger=durably.TriggerEvent(event="parcel/delivered", expression="event.data.country == 'SE'"),
    debounce=durably.Debounce(period=dt.timedelta(seconds=1), key="event.data.customer"),
)
async def ask_for_review(ctx: durably.Context) -> None:
    """Sleeps for days."""
    await ctx.step.run("thank", thank, ctx.event.data["customer"])
    await ctx.step.sleep("give-it-time", dt.timedelta(days=5))
    await ctx.step.run("send-mail", thank, ctx.event.data["customer"])


async def thank(customer: str) -> str:
    return f"thanked {customer}"


@client.create_function(
    fn_id="approve-refund",
    name="Approve a refund",
    trigger=durably.TriggerEvent(event="refund/requested"),
    cancel=[durably.Cancel(event="refund/withdrawn", if_exp="async.data.order == event.data.order")],
    priority=durably.Priority(run="event.data.amount > 500 ? 60 : 0"),
)
async def approve_refund(ctx: durably.Context) -> str:
    """Waits for a person, or is cancelled by an event."""
    await ctx.step.run("notify-team", thank, "the team")
    answer = await ctx.step.wait_for_event(
        "answer",
        event="refund/answered",
        if_exp="async.data.order == event.data.order",
        timeout=dt.timedelta(days=14),
    )
    return "refused: no answer" if answer is None else f"{answer.data['answer']}"


@client.create_function(
    fn_id="send-newsletter", name="Send the newsletter", trigger=durably.TriggerEvent(event="newsletter/ready")
)
async def send_newsletter(ctx: durably.Context) -> str:
    """Is paused by ``events.py``."""
    return "sent"


@client.create_function(
    fn_id="resize-photos",
    name="Resize photos",
    trigger=durably.TriggerEvent(event="photo/uploaded"),
    concurrency=[durably.Concurrency(limit=1)],
)
async def resize_photos(ctx: durably.Context) -> str:
    """One at a time, so that a backlog grows."""
    return await ctx.step.run("resize", resize, str(ctx.event.data["photo"]), float(ctx.event.data["seconds"]))


async def resize(photo: str, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return f"{photo}.webp"


@client.create_function(fn_id="count-stock", name="Count the stock", trigger=durably.TriggerCron(cron="* * * * *"))
async def count_stock(ctx: durably.Context) -> int:
    return await ctx.step.run("count", count)


async def count() -> int:
    await asyncio.sleep(0.1)
    return 1204


@client.create_function(
    fn_id="report-sales",
    name="Report the week's sales",
    trigger=[
        durably.TriggerCron(cron="TZ=Europe/Stockholm 0 8 * * 1"),
        durably.TriggerEvent(event="report/requested"),
    ],
)
async def report_sales(ctx: durably.Context) -> dict[str, Any]:
    return {"week": 47, "orders": 1204, "revenue": {"SEK": 812_400, "EUR": 20_310.5}, "by_day": [180] * 6 + [124]}


durably.fast_api.serve(
    app,
    client,
    [
        import_catalogue,
        pack_parcel,
        print_label,
        settle_invoice,
        update_accounts,
        ask_for_review,
        approve_refund,
        send_newsletter,
        resize_photos,
        count_stock,
        report_sales,
    ],
)
