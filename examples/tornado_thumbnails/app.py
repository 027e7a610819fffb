"""Thumbnails: fan out over the sizes of a picture, give up after a deadline, and clean up on failure.

    durably dev examples.tornado_thumbnails.app:app

then upload a picture:

    curl -X POST localhost:8000/pictures/cat.png
"""

import asyncio
import datetime as dt

import tornado.web

import durably
import durably.tornado

client = durably.Client(app_id="pictures")
SIZES = (64, 256, 1024)
cleaned: list[str] = []


async def clean_up(ctx: durably.Context) -> str:
    """Called when a run of the function below has failed for good."""
    name = ctx.event.data["event"]["data"]["name"]
    cleaned.append(name)
    return f"removed what was made of {name}"


@client.create_function(
    fn_id="make-thumbnails", trigger=durably.TriggerEvent(event="picture/uploaded"), retries=1, on_failure=clean_up
)
async def make_thumbnails(ctx: durably.Context) -> list[str]:
    name = ctx.event.data["name"]
    async with ctx.group.timeout("deadline", dt.timedelta(minutes=10)), asyncio.TaskGroup() as group:
        tasks = [group.create_task(ctx.step.run(f"resize-{size}", resize, name, size)) for size in SIZES]
    return [task.result() for task in tasks]


async def resize(name: str, size: int) -> str:
    if not name.endswith(".png"):
        raise durably.NonRetriableError(f"{name} is not a picture")
    await asyncio.sleep(0.05)
    return f"{name}@{size}"


class Pictures(tornado.web.RequestHandler):
    async def post(self, name: str) -> None:
        [event_id] = await client.send(durably.Event(name="picture/uploaded", data={"name": name}))
        self.set_status(202)
        self.write({"event": event_id})


app = tornado.web.Application([(r"/pictures/([^/]+)", Pictures)])
durably.tornado.serve(app, client, [make_thumbnails])
