"""A newsletter whose engine runs inside the app: no second process, no HTTP, one SQLite file.

    uvicorn examples.embedded.app:app --workers 2

then subscribe, confirm, and list the runs:

    curl -X POST localhost:8000/subscribers/ada@example.com
    curl -X POST localhost:8000/subscribers/ada@example.com/confirmed
    curl localhost:8000/runs

If a worker is killed between these requests, the run continues in the other.
"""

import datetime as dt
import os
from typing import Any

import fastapi

import durably
import durably.fast_api

engine = durably.Embedded(os.environ.get("DATABASE", "newsletter.db"))
client = durably.Client(app_id="newsletter", engine=engine)
app = fastapi.FastAPI(title="Newsletter")


@client.create_function(fn_id="subscribe", trigger=durably.TriggerEvent(event="newsletter/requested"))
async def subscribe(ctx: durably.Context) -> str:
    email = ctx.event.data["email"]
    await ctx.step.run("ask", send_mail, email, "Is it you?")
    confirmation = await ctx.step.wait_for_event(
        "confirmation",
        event="newsletter/confirmed",
        if_exp="async.data.email == event.data.email",
        timeout=dt.timedelta(days=2),
    )
    if confirmation is None:
        return "forgotten"
    await ctx.step.run("welcome", send_mail, email, "Welcome!")
    return "subscribed"


async def send_mail(to: str, subject: str) -> str:
    return f"{subject} → {to} (by process {os.getpid()})"


@app.post("/subscribers/{email}", status_code=202)
async def request_subscription(email: str) -> dict[str, str]:
    [event_id] = await client.send(durably.Event(name="newsletter/requested", data={"email": email}))
    return {"event": event_id}


@app.post("/subscribers/{email}/confirmed", status_code=202)
async def confirm(email: str) -> dict[str, str]:
    [event_id] = await client.send(durably.Event(name="newsletter/confirmed", data={"email": email}))
    return {"event": event_id}


@app.get("/runs")
async def runs() -> list[dict[str, Any]]:
    return [{"run": run.id, "status": run.status, "output": run.decode_output()} for run in await engine.list_runs()]


durably.fast_api.serve(app, client, [subscribe])
