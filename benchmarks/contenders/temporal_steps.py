"""Runs of a number of steps on a Temporal server that others share.

Arguments: the server's address, a namespace that is this process's own, the way (``hand``, ``call``, ``update``,
``buffered`` or ``sleeping``), and the number of steps. ``hand`` is a hand-written workflow with an activity for each
step. The others are a function on the engine on Temporal, with a call or an Update for each step, or an Update for
twenty. ``sleeping`` has an Update for each step, which takes ``STEP_SECONDS``, and a process makes ``MAX_CALLS`` calls.
"""

import asyncio
import datetime as dt
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker
from ulid import ULID

with workflow.unsafe.imports_passed_through():
    import durably
    from benchmarks.children import Answerer, serve
    from benchmarks.contenders.load import RunOne, charged, time_runs
    from durably.comm.handler import CommHandler
    from durably.embedded.calls import EngineCheckpoints, run_call, sync_of
    from durably.engine.core.calls import Answer, CallData
    from durably.engine.model.settings import EngineSettings, SystemClock
    from durably.engine.temporal.client import DATA_CONVERTER
    from durably.engine.temporal.engine import WorkflowEngine
    from durably.engine.temporal.ids import app_queue, make_run_id, run_workflow_id
    from durably.engine.temporal.messages import CallInput
    from durably.protocol.call import CheckpointRequest

APP, EVENT, QUEUE = "benchmark", "benchmark/run", "benchmark"
CHECKPOINTING: dict[str, bool | durably.Checkpointing] = {
    "call": False,
    "update": True,
    "buffered": durably.Checkpointing(buffered_steps=20),
    "sleeping": True,
}
STEP_SECONDS, MAX_CALLS = 0.2, 20
_TIMEOUT = dt.timedelta(seconds=30)


@activity.defn
async def charge(number: int) -> dict[str, Any]:
    return charged(number)


async def wait_and_charge(number: int) -> dict[str, Any]:
    await asyncio.sleep(STEP_SECONDS)
    return charged(number)


@workflow.defn
class Steps:
    @workflow.run
    async def run(self, number: int, steps: int) -> int:
        for _ in range(steps):
            await workflow.execute_activity(charge, number, start_to_close_timeout=_TIMEOUT)
        return number


async def open_by_hand(address: str, namespace: str, steps: int, stack: AsyncExitStack) -> RunOne:
    client = await Client.connect(address, namespace=namespace)
    await stack.enter_async_context(Worker(client, task_queue=QUEUE, workflows=[Steps], activities=[charge]))
    ids = itertools.count()

    async def run_one(number: int) -> None:
        await client.execute_workflow(Steps.run, args=[number, steps], id=f"run-{next(ids)}", task_queue=QUEUE)

    return run_one


async def open_engine(address: str, namespace: str, way: str, steps: int, stack: AsyncExitStack) -> RunOne:
    client = await Client.connect(address, namespace=namespace, data_converter=DATA_CONVERTER)
    engine = WorkflowEngine(client, EngineSettings(max_calls=MAX_CALLS) if way == "sleeping" else EngineSettings())
    handler = _handler(way, steps)
    clock = SystemClock()

    async def checkpoint(run_id: str, request: CheckpointRequest) -> None:
        await engine.checkpoint(run_id, request)

    checkpoints = EngineCheckpoints(checkpoint, _block)

    async def make_call(call: CallInput, data: CallData) -> Answer:
        return await run_call(handler, data, checkpoints, clock)

    stack.push_async_callback(engine.close)
    for worker in engine.make_workers([app_queue(APP)], make_call):
        await stack.enter_async_context(worker)
    await engine.sync_app(sync_of(handler), in_process=True)

    async def run_one(number: int) -> None:
        receipt = await engine.receive_events(json.dumps({"name": EVENT, "data": {"number": number}}).encode())
        event_id = receipt.ids[0]
        run_id = make_run_id(ULID.from_str(event_id).milliseconds, event_id, f"{APP}-steps")
        await client.get_workflow_handle(run_workflow_id(run_id)).result()

    return run_one


def _handler(way: str, steps: int) -> CommHandler:
    work = wait_and_charge if way == "sleeping" else charge
    client = durably.Client(app_id=APP, is_production=False, engine="http://127.0.0.1:1")

    @client.create_function(fn_id="steps", trigger=durably.TriggerEvent(event=EVENT), checkpointing=CHECKPOINTING[way])
    async def function(ctx: durably.Context) -> int:
        number: int = ctx.event.data["number"]
        for step in range(steps):
            await ctx.step.run(f"charge-{step}", work, number)
        return number

    return CommHandler(client=client, framework="benchmark", functions=[function])


def _block(waiting: Any) -> None:
    raise AssertionError("the function is async")


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    address, namespace, way, steps = arguments
    async with AsyncExitStack() as stack:
        if way == "hand":
            run_one = await open_by_hand(address, namespace, int(steps), stack)
        else:
            run_one = await open_engine(address, namespace, way, int(steps), stack)
        yield "ready", lambda question: time_runs(run_one, question["runs"], question["at_once"])


if __name__ == "__main__":
    serve(open_contender)
