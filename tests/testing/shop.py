"""An app to test test engines with: what its functions do is written as users write it."""

import asyncio
import datetime as dt

import durably

client = durably.Client(app_id="shop")
billing = durably.Client(app_id="billing")

DAY = dt.timedelta(days=1)


@client.create_function(fn_id="onboard", trigger=durably.TriggerEvent(event="user/signed.up"))
async def onboard(ctx: durably.Context) -> str:
    email = ctx.event.data["email"]
    await ctx.step.run("welcome", lambda: f"Welcome, {email}!")
    await ctx.step.sleep("a-month", 30 * DAY)
    login = await ctx.step.wait_for_event(
        "login", event="user/logged.in", if_exp="async.data.email == event.data.email", timeout=7 * DAY
    )
    if login is None:
        await ctx.step.run("remind", lambda: f"We miss you, {email}")
        return "reminded"
    return f"came back from {login.data['city']}"


class CardError(Exception):
    pass


def charge(amount: int) -> str:
    raise CardError(f"no bank is asked for {amount} in tests")


@client.create_function(fn_id="order", trigger=durably.TriggerEvent(event="order/placed"))
def order(ctx: durably.ContextSync) -> dict[str, object]:
    receipt = ctx.step.run("charge", charge, ctx.event.data["amount"])
    mailed = ctx.step.invoke("mail", function=mail, data={"receipt": receipt})
    return {"receipt": receipt, "mailed": mailed}


@billing.create_function(fn_id="mail", trigger=durably.TriggerEvent(event="billing/mail"))
async def mail(ctx: durably.Context) -> str:
    await ctx.step.sleep("in-the-morning", DAY / 2)
    sent = await ctx.step.run("send", lambda: f"mailed {ctx.event.data['receipt']}")
    await ctx.step.send_event("notify", durably.Event(name="billing/mailed", data={"text": sent}))
    return sent


@client.create_function(fn_id="race", trigger=durably.TriggerEvent(event="race/started"))
async def race(ctx: durably.Context) -> list[str]:
    async def lap(name: str, seconds: int) -> str:
        await ctx.step.sleep(f"{name}-warms-up", dt.timedelta(seconds=seconds))
        return await ctx.step.run(name, lambda: name)

    laps = {"slow": 20, "quick": 10, "middling": 15}
    runners = [asyncio.create_task(lap(name, seconds)) for name, seconds in laps.items()]
    return [await done for done in asyncio.as_completed(runners)]


@client.create_function(fn_id="approve", trigger=durably.TriggerEvent(event="approval/asked"))
async def approve(ctx: durably.Context) -> object:
    signal = await ctx.step.wait_for_signal("answer", signal="approval-1", timeout=3 * DAY)
    return signal and signal.data
