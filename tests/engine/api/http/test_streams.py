"""Streams of runs, from an engine over HTTP."""

import asyncio

import durably
from durably.streams import Listener

from ....waiting import async_eventually
from .conftest import EVENT_KEY, SIGNING_KEY, Harness, ServeFunctions, client_of


async def test_many_listeners_of_one_process_read_with_one_request(
    cloud: Harness, serve_functions: ServeFunctions
) -> None:
    client = client_of(cloud, is_production=True, signing_key=SIGNING_KEY, event_key=EVENT_KEY)

    @client.create_function(fn_id="count", trigger=[])
    async def count(ctx: durably.Context) -> int:
        await ctx.step.wait_for_signal("go", signal=ctx.run_id, timeout=60_000)

        async def publish() -> None:
            for number in range(100):
                durably.publish("numbers", number)

        await ctx.step.run("publish", publish)
        ctx.progress(1)
        return 100

    await cloud.server.discovery.sync(await serve_functions(client, [count]))
    handles = [await count.start(client=client) for _ in range(3)]
    listeners = [Listener(client, handle.id, topics=["numbers", "$run"]) for handle in handles * 20]
    await asyncio.gather(*(listener.open() for listener in listeners))
    channels = cloud.engine.channels
    assert channels is not None
    for handle in handles:
        await async_eventually(lambda handle=handle: handle.signal(handle.id), "the run waits")  # type: ignore[misc]
    assert len(channels._waiting) <= 1

    async def read_all(listener: Listener) -> list[object]:
        found = []
        while batch := await listener.read():
            found += [each.data for each in batch if each.topic == "numbers"]
        return found

    async with asyncio.timeout(60):
        found = await asyncio.gather(*map(read_all, listeners))
    assert [each for each in found if each != list(range(100))] == []
    run = await handles[0].status()
    assert run.progress is not None
    assert run.progress.fraction == 1
    assert [each.data["status"] async for each in handles[0].stream(["$run"])] == ["Completed"]
