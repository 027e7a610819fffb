"""Encryption of events, memos and outputs on a Temporal server."""

from collections.abc import AsyncIterator

from temporalio.client import Client

import durably
from durably.engine.model.runs import RunStatus
from durably.engine.temporal.client import DATA_CONVERTER
from durably.temporal import Temporal
from durably.temporal.encryption import EncryptionCodec, EncryptionKey

from ...temporal.dev_server import BILLING, DevServer
from ...waiting import async_eventually
from .running_apps import ended_runs, make_client, send, serving

SECRET = "the-secret-of-a-customer"


async def stored_bytes(client: Client, app_id: str) -> AsyncIterator[tuple[str, bytes]]:
    """The stored data of an app's workflows: their histories, memos and search attributes."""
    async for each in client.list_workflows():
        handle = client.get_workflow_handle(each.id)
        history = [event.SerializeToString() async for event in handle.fetch_history_events()]
        described = (await handle.describe()).raw_description.SerializeToString()
        if app_id.encode() in each.id.encode() + described + b"".join(history):
            yield each.id, described + b"".join(history)


async def test_the_server_sees_no_data_of_events_steps_and_errors(server: DevServer) -> None:
    app = make_client()
    event, reply = f"{app.app_id}/go", f"{app.app_id}/reply"

    @app.create_function(fn_id="go", name="Go", trigger=durably.TriggerEvent(event=event), retries=0)
    async def go(ctx: durably.Context) -> str:
        text = str(ctx.event.data["text"])
        said: str = await ctx.step.run("say", lambda: f"{text}, said")
        await ctx.step.sleep("nap", 10)
        await ctx.step.wait_for_event("reply", event=reply, timeout=1, if_exp="event.data.text == async.data.text")
        if ctx.event.data.get("fails"):
            raise ValueError(f"refused {text}")
        return said

    temporal = Temporal(
        server.address, BILLING, data_converter=DATA_CONVERTER, encryption=EncryptionCodec(EncryptionKey.generate("k"))
    )
    converter = (await temporal.connect()).data_converter
    async with serving(server.address, app, [go], converter=converter, namespace=BILLING) as engine:
        (run,) = await ended_runs(engine, await send(engine, event, {"text": SECRET}))
        assert run.decode_output() == f"{SECRET}, said"
        (failed,) = await ended_runs(engine, await send(engine, event, {"text": SECRET, "fails": True}))
        assert (failed.status, failed.decode_output()["message"]) == (RunStatus.FAILED, f"refused {SECRET}")

        # Lists and reports decrypt.
        runs = await async_eventually(
            lambda: engine.list_runs(function_id=f"{app.app_id}-go"),
            "two runs are listed",
            is_right=lambda runs: len(runs) == 2,
        )
        assert [each.decode_output() for each in runs][1] == f"{SECRET}, said"
        stored = await engine.get_event(runs[1].event_ids[0])
        assert stored is not None
        assert stored.data["text"] == SECRET

        plain = await Client.connect(server.address, namespace=BILLING)
        stored = [found async for found in stored_bytes(plain, app.app_id)]
        assert {each.split("/")[1] for each, _ in stored} >= {"run", "topic", "function", "app", "wait"}
        assert [each for each, found in stored if SECRET.encode() in found] == []
        # The search attributes are readable: they are ids and names.
        assert [each for each, found in stored if f"{app.app_id}-go".encode() in found]
