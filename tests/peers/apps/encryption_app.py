"""One app, of ``inngest`` or of ``durably``, whose functions exchange encrypted data with those of others."""

import datetime as dt
import os
from typing import Any

import fastapi

APP_ID = os.environ["PEER_APP_ID"]
KEY = os.environ["PEER_KEY"]

if os.environ["PEER_PACKAGE"] == "durably":
    import durably as sdk
    import durably.fast_api as fast_api
    from durably.encryption import EncryptionMiddleware
else:
    import inngest as sdk
    import inngest.fast_api as fast_api
    from inngest_encryption import EncryptionMiddleware

client = sdk.Inngest(app_id=APP_ID, middleware=[EncryptionMiddleware.factory(KEY)])


@client.create_function(fn_id="reply", trigger=sdk.TriggerEvent(event=f"{APP_ID}/reply"))
async def reply(ctx: Any) -> Any:
    return {"reply": ctx.event.data["encrypted"]}


@client.create_function(fn_id="ask", trigger=sdk.TriggerEvent(event=f"{APP_ID}/ask"))
async def ask(ctx: Any) -> Any:
    async def secret() -> Any:
        return ctx.event.data["encrypted"]

    other = ctx.event.data["other"]
    data = {"encrypted": await ctx.step.run("secret", secret), "plain": 1}
    await ctx.step.send_event("notify", sdk.Event(name=f"{other}/reply", data=data))
    return await ctx.step.invoke_by_id("ask", app_id=other, function_id="reply", data=data)


@client.create_function(fn_id="handed", trigger=sdk.TriggerEvent(event=f"{APP_ID}/handed"))
async def handed(ctx: Any) -> Any:
    async def secret() -> Any:
        return ctx.event.data["encrypted"]

    found = await ctx.step.run("secret", secret)
    event = await ctx.step.wait_for_event("go", event=f"{APP_ID}/go", timeout=dt.timedelta(minutes=5))
    return [found, event is not None]


app = fastapi.FastAPI()
fast_api.serve(app, client, [reply, ask, handed])
