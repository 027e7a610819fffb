"""An app of the official Python SDK: async functions in FastAPI, one for each thing that the SDK can do."""

import asyncio
import datetime as dt
import os
from functools import partial
from typing import Any

import fastapi
import inngest
import inngest.fast_api
import pydantic
from inngest.experimental import ai
from inngest.experimental.remote_state_middleware import InMemoryDriver, RemoteStateMiddleware
from inngest_encryption import EncryptionMiddleware

APP_ID = os.environ["PEER_APP_ID"]
SECOND = dt.timedelta(seconds=1)

client = inngest.Inngest(app_id=APP_ID, serializer=inngest.PydanticSerializer())
functions: list[inngest.Function[Any]] = []
attempts: dict[str, int] = {}


def function(name: str, **options: Any) -> Any:
    def add(handler: Any) -> Any:
        trigger = options.pop("trigger", inngest.TriggerEvent(event=f"{APP_ID}/{name}"))
        made = client.create_function(fn_id=name, trigger=trigger, **options)(handler)
        functions.append(made)
        return made

    return add


def is_first(run_id: str, what: str) -> bool:
    """Whether this is the first time that the run comes here."""
    attempts[run_id + what] = attempts.get(run_id + what, 0) + 1
    return attempts[run_id + what] == 1


async def value(of: Any) -> Any:
    return of


class Order(pydantic.BaseModel):
    id: int
    placed: dt.date


@function("run", output_type=Order)
async def run(ctx: inngest.Context) -> Order:
    async def load(order_id: int, day: str) -> Order:
        return Order(id=order_id, placed=dt.date.fromisoformat(day))

    order = await ctx.step.run("load", load, 7, "2026-01-02", output_type=Order)
    assert isinstance(order, Order)
    again = await ctx.step.run("load", load, order.id + 1, "2026-01-03", output_type=Order)
    return Order(id=again.id, placed=order.placed)


@function("sleep")
async def sleep(ctx: inngest.Context) -> str:
    await ctx.step.sleep("nap", SECOND)
    await ctx.step.sleep("milliseconds", 500)
    await ctx.step.sleep_until("until", dt.datetime.now(dt.UTC) + SECOND)
    return "rested"


@function("wait")
async def wait(ctx: inngest.Context) -> Any:
    found = await ctx.step.wait_for_event(
        "wait", event=f"{APP_ID}/answer", if_exp="event.data.id == async.data.id", timeout=dt.timedelta(minutes=1)
    )
    return None if found is None else found.data


@function("wait-timeout")
async def wait_timeout(ctx: inngest.Context) -> Any:
    return await ctx.step.wait_for_event("wait", event=f"{APP_ID}/never", timeout=SECOND)


@function("child", output_type=Order)
async def child(ctx: inngest.Context) -> Order:
    return Order(id=int(str(ctx.event.data["id"])), placed=dt.date(2026, 1, 1))


@function("failing-child", retries=0)
async def failing_child(ctx: inngest.Context) -> None:
    raise ValueError("the child failed")


@function("invoke")
async def invoke(ctx: inngest.Context) -> Any:
    typed = await ctx.step.invoke("typed", function=child, data={"id": 3}, timeout=dt.timedelta(minutes=1))
    assert isinstance(typed, Order)
    by_id = await ctx.step.invoke_by_id("by-id", app_id=APP_ID, function_id="child", data={"id": 4})
    try:
        await ctx.step.invoke("failing", function=failing_child)
    except inngest.StepError as error:
        return {"typed": typed.id, "by_id": by_id, "error": error.message}


@function("send")
async def send(ctx: inngest.Context) -> int:
    events = [inngest.Event(name=f"{APP_ID}/received", data={"n": n}) for n in range(2)]
    return len(await ctx.step.send_event("send", events))


@function("received")
async def received(ctx: inngest.Context) -> Any:
    return ctx.event.data


@function("parallel")
async def parallel(ctx: inngest.Context) -> Any:
    return await ctx.group.parallel(
        (
            partial(ctx.step.run, "one", value, 1),
            partial(ctx.step.sleep, "nap", 500),
            partial(ctx.step.invoke_by_id, "call", function_id="child", data={"id": 5}),
            partial(ctx.step.run, "two", value, 2),
        )
    )


@function("race")
async def race(ctx: inngest.Context) -> Any:
    async def branch(*ids: str) -> list[str]:
        return [await ctx.step.run(step_id, value, step_id) for step_id in ids]

    branches = (partial(branch, "l1", "l2", "l3"), partial(branch, "r1", "r2"))
    found = await ctx.group.parallel(branches, parallel_mode=inngest.ParallelMode.RACE)
    return [*found, await ctx.step.run("after", value, "after")]


@function("infer")
async def infer(ctx: inngest.Context) -> Any:
    adapter = ai.openai.Adapter(auth_key="sk-peer-secret", base_url=str(ctx.event.data["provider"]), model="small")
    answer: Any = await ctx.step.ai.infer("ask", adapter=adapter, body={"messages": []})
    return answer["choices"][0]


@function("retry")
async def retry(ctx: inngest.Context) -> int:
    if ctx.attempt == 0:
        raise ValueError("the first attempt fails")
    return ctx.attempt


@function("step-retry")
async def step_retry(ctx: inngest.Context) -> str:
    async def flaky() -> str:
        if is_first(ctx.run_id, "flaky"):
            raise ValueError("the first attempt fails")
        return "second"

    return await ctx.step.run("flaky", flaky)


@function("step-fail", retries=0)
async def step_fail(ctx: inngest.Context) -> Any:
    async def bad() -> None:
        raise LookupError("bad step")

    try:
        await ctx.step.run("bad", bad)
    except inngest.StepError as error:
        kept = bool(error.stack and "bad step" in error.stack)
        return {"name": error.name, "message": error.message, "stack": kept}


@function("non-retriable")
async def non_retriable(ctx: inngest.Context) -> None:
    raise inngest.NonRetriableError("no more")


@function("step-non-retriable")
async def step_non_retriable(ctx: inngest.Context) -> None:
    async def bad() -> None:
        raise inngest.NonRetriableError("no more")

    await ctx.step.run("bad", bad)


@function("retry-after")
async def retry_after(ctx: inngest.Context) -> int:
    if ctx.attempt == 0:
        raise inngest.RetryAfterError("soon", SECOND)
    return ctx.attempt


@function("step-retry-after")
async def step_retry_after(ctx: inngest.Context) -> str:
    async def flaky() -> str:
        if is_first(ctx.run_id, "flaky"):
            raise inngest.RetryAfterError("soon", 1000)
        return "second"

    return await ctx.step.run("flaky", flaky)


async def on_failure(ctx: inngest.Context) -> Any:
    data: Any = ctx.event.data
    message = await ctx.step.run("message", value, data["error"]["message"])
    return {"message": message, "event": data["event"]["name"]}


@function("guarded", retries=0, on_failure=on_failure)
async def guarded(ctx: inngest.Context) -> None:
    raise ValueError("guarded failed")


@function(
    "triggers",
    trigger=[
        inngest.TriggerEvent(event=f"{APP_ID}/triggers"),
        inngest.TriggerEvent(event=f"{APP_ID}/triggers-b", expression="event.data.id > 0"),
        inngest.TriggerCron(cron="0 0 1 1 *"),
    ],
)
async def triggers(ctx: inngest.Context) -> str:
    return ctx.event.name


@function("large")
async def large(ctx: inngest.Context) -> int:
    parts = [await ctx.step.run("part", value, "x" * 1_500_000) for _ in range(3)]
    return sum(len(part) for part in parts)


class Wrapping(inngest.Middleware):
    """Uses what middleware can change: input, and the outputs of steps and of the function."""

    async def transform_input(self, ctx: Any, function: Any, steps: Any) -> None:
        ctx.event.data = {**ctx.event.data, "added": True}

    async def transform_output(self, result: inngest.TransformOutputResult) -> None:
        if result.has_output():
            result.output = {"step" if result.step else "function": result.output}


@function("middleware", middleware=[Wrapping])
async def middleware(ctx: inngest.Context) -> Any:
    return [ctx.event.data["added"], await ctx.step.run("a", value, 1)]


@function("encrypted", middleware=[EncryptionMiddleware.factory("a key of the app's own")])
async def encrypted(ctx: inngest.Context) -> Any:
    found = await ctx.step.run("secret", value, "plain text of a step")
    assert found == "plain text of a step"
    return found


@function("remote-state", middleware=[RemoteStateMiddleware.factory(InMemoryDriver())])
async def remote_state(ctx: inngest.Context) -> Any:
    found = await ctx.step.run("kept", value, "plain text of a step")
    return {"is_same": found == "plain text of a step"}


@function("concurrent-io")
async def concurrent_io(ctx: inngest.Context) -> Any:
    async def gather() -> list[int]:
        return list(await asyncio.gather(value(1), value(2)))

    return await ctx.step.run("gather", gather)


app = fastapi.FastAPI()
streaming = inngest.Streaming.FORCE if os.environ.get("PEER_STREAMING") else None
inngest.fast_api.serve(app, client, functions, streaming=streaming)
