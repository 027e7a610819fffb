"""The number of functions that a step of an in-process run passes, none of them for the wire."""

import asyncio
from pathlib import Path

from durably import Client, Context, Embedded, Event, TriggerEvent
from durably.comm import CommHandler

from ..paths import CallPath, Tracer, usual_path

STEPS = 12
_MAX_FUNCTIONS = 93
_MAX_MODULES = 35
"""Lower them when the path gets shorter: the aim is 60 functions in 16 modules."""


async def test_step_passes_few_functions(tmp_path: Path) -> None:
    """From the end of one step's handler to the start of the next one's: checkpoint, commit and replay."""
    client = Client(app_id="shop", is_production=False, engine=Embedded(tmp_path / "durably.db"))
    paths: list[CallPath] = []
    ended = asyncio.Event()

    @client.create_function(fn_id="count", trigger=TriggerEvent(event="count"))
    async def count(ctx: Context) -> None:
        def handler(number: int) -> None:
            if number:
                paths.append(tracer.stop())
            tracer.start()

        for number in range(STEPS):
            await ctx.step.run(f"step-{number}", handler, number)
        tracer.stop()
        ended.set()

    CommHandler(client=client, framework="test", functions=[count])
    with Tracer() as tracer:
        async with client.engine.running():
            await client.send(Event(name="count"))
            await ended.wait()  # A request to the engine would be recorded too.
    assert len(paths) == STEPS - 1
    path = usual_path(paths)
    assert len(path.calls) <= _MAX_FUNCTIONS, str(path)
    assert len(path.modules) <= _MAX_MODULES, str(path)


_WIRE = {
    "CommRequest.__init__",
    "CommResponse.from_call_result",
    "build_body",
    "decode_call",
    "encode",
    "read_answer",
    "Timings.to_header",
}


async def test_call_in_process_builds_no_http(tmp_path: Path) -> None:
    client = Client(app_id="shop", is_production=False, engine=Embedded(tmp_path / "durably.db"))

    @client.create_function(fn_id="relay", trigger=TriggerEvent(event="relay"))
    async def relay(ctx: Context) -> int:
        await ctx.step.run("first", lambda: 1)
        await ctx.step.sleep("second", 1)
        return 2

    CommHandler(client=client, framework="test", functions=[relay])
    with Tracer() as tracer:
        async with client.engine.running():
            tracer.start()
            [event_id] = await client.send(Event(name="relay"))
            [run] = await client.engine.event_runs(event_id)
            await client.engine.wait_for_run(run.id)
            path = tracer.stop()
    names = {function.name for function in path.calls}
    assert "Function.call" in names
    assert names.isdisjoint(_WIRE)
