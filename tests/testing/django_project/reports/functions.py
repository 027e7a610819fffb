import datetime as dt

import durably

from .models import Report

client = durably.Client(app_id="reports", is_production=False)


def make(title: str) -> int:
    return int(Report.objects.create(title=title).pk)


def finish(key: int) -> None:
    Report.objects.filter(pk=key).update(is_ready=True)


@client.create_function(fn_id="report", trigger=durably.TriggerEvent(event="report/asked"))
def report(ctx: durably.ContextSync) -> int:
    key = ctx.step.run("make", make, ctx.event.data["title"])
    ctx.step.sleep("overnight", dt.timedelta(hours=12))
    ctx.step.run("finish", finish, key)
    return key


@client.create_function(fn_id="report-async", trigger=durably.TriggerEvent(event="report/asked.async"))
async def report_async(ctx: durably.Context) -> str:
    async def make_async() -> str:
        return (await Report.objects.acreate(title=ctx.event.data["title"])).title

    title = await ctx.step.run("make", make_async)
    await ctx.step.sleep("overnight", dt.timedelta(hours=12))
    return title
