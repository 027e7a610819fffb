"""The app of the conformance tests in Python, written once for two packages: ``CONFORMANCE_PACKAGE`` is either of
``durably`` and ``inngest``. The functions, and what each must do, stand in the README beside this folder.

Served with ``uvicorn python_app:app``.
"""

import datetime as dt
import importlib
import os
from typing import Any

import fastapi

PACKAGE = os.environ.get("CONFORMANCE_PACKAGE", "durably")
inngest: Any = importlib.import_module(PACKAGE)
framework: Any = importlib.import_module(f"{PACKAGE}.fast_api")
openai: Any = importlib.import_module("inngest.experimental.ai.openai")  # a plain object; fits both packages

client = inngest.Inngest(app_id="conformance", is_production=None)
functions: list[Any] = []


def function(fn_id: str, **options: Any) -> Any:
    """A function of that id, triggered by ``conformance/<id>``, added to those served."""

    def add(handler: Any) -> Any:
        trigger = options.pop("trigger", inngest.TriggerEvent(event=f"conformance/{fn_id}"))
        made = client.create_function(fn_id=fn_id, trigger=trigger, **options)(handler)
        functions.append(made)
        return made

    return add


@function("plain")
async def plain(ctx: Any) -> Any:
    return {"data": ctx.event.data, "attempt": ctx.attempt, "run_id": ctx.run_id, "events": len(ctx.events)}


@function("sequence")
async def sequence(ctx: Any) -> Any:
    first = await ctx.step.run("a", lambda: 1)
    second = await ctx.step.run("b", lambda: first + 1)
    return {"a": first, "b": second}


@function("repeat")
async def repeat(ctx: Any) -> Any:
    return [await ctx.step.run("same", lambda n=n: n) for n in range(3)]


@function("sleep")
async def sleep(ctx: Any) -> Any:
    await ctx.step.sleep("nap", dt.timedelta(hours=1))
    return "awake"


@function("sleep-until")
async def sleep_until(ctx: Any) -> Any:
    await ctx.step.sleep_until("until", dt.datetime(2100, 1, 1, tzinfo=dt.UTC))
    return "awake"


@function("wait")
async def wait(ctx: Any) -> Any:
    found = await ctx.step.wait_for_event(
        "wait", event="conformance/answer", if_exp="event.data.id == async.data.id", timeout=dt.timedelta(hours=1)
    )
    return None if found is None else {"name": found.name, "data": found.data}


@function("invoke")
async def invoke(ctx: Any) -> Any:
    return await ctx.step.invoke("call", function=plain, data={"n": 1}, timeout=dt.timedelta(minutes=1))


@function("fail")
async def fail(ctx: Any) -> Any:
    raise ValueError("boom")


@function("fail-for-good")
async def fail_for_good(ctx: Any) -> Any:
    raise inngest.NonRetriableError("no more")


@function("retry-after")
async def retry_after(ctx: Any) -> Any:
    raise inngest.RetryAfterError("later", dt.timedelta(hours=1))


def _fail(error: Exception) -> Any:
    raise error


@function("step-fail")
async def step_fail(ctx: Any) -> Any:
    try:
        return await ctx.step.run("bad", lambda: _fail(ValueError("bad step")))
    except inngest.StepError as error:
        return {"name": error.name, "message": error.message}


@function("step-fail-for-good")
async def step_fail_for_good(ctx: Any) -> Any:
    return await ctx.step.run("bad", lambda: _fail(inngest.NonRetriableError("bad for good")))


@function("step-retry-after")
async def step_retry_after(ctx: Any) -> Any:
    return await ctx.step.run("bad", lambda: _fail(inngest.RetryAfterError("later", dt.timedelta(hours=1))))


def _steps(ctx: Any, *ids: str) -> Any:
    async def branch() -> Any:
        return [await ctx.step.run(step_id, lambda step_id=step_id: step_id) for step_id in ids]

    return branch


@function("parallel")
async def parallel(ctx: Any) -> Any:
    return await ctx.group.parallel((_steps(ctx, "left"), _steps(ctx, "right")))


@function("race")
async def race(ctx: Any) -> Any:
    branches = _steps(ctx, "l1", "l2"), _steps(ctx, "r1", "r2")
    return await ctx.group.parallel(branches, parallel_mode=inngest.ParallelMode.RACE)


@function("mixed")
async def mixed(ctx: Any) -> Any:
    async def nap() -> None:
        await ctx.step.sleep("nap", dt.timedelta(hours=1))

    return await ctx.group.parallel((_steps(ctx, "left"), nap))


@function("nested")
async def nested(ctx: Any) -> Any:
    async def outer() -> Any:
        return await ctx.step.run("inner", lambda: 1)

    return await ctx.step.run("outer", outer)


@function("send")
async def send(ctx: Any) -> Any:
    return await ctx.step.send_event("send", inngest.Event(name="conformance/sent", data={"n": 1}))


@function("infer")
async def infer(ctx: Any) -> Any:
    adapter = openai.Adapter(auth_key="sk-conformance", base_url="http://provider.test/v1", model="small")
    return await ctx.step.ai.infer("ask", adapter=adapter, body={"messages": [{"role": "user", "content": "hi"}]})


@function("big")
async def big(ctx: Any) -> Any:
    return {"size": len(ctx.event.data["text"]), "step": await ctx.step.run("a", lambda: "ran")}


async def _on_failure(ctx: Any) -> Any:
    return {"error": ctx.event.data["error"]["message"], "event": ctx.event.data["event"]["name"]}


@function("guarded", retries=0, on_failure=_on_failure)
async def guarded(ctx: Any) -> Any:
    raise ValueError("guarded failed")


@function(
    "configured",
    name="Configured",
    retries=2,
    trigger=[
        inngest.TriggerEvent(event="conformance/configured", expression="event.data.ok == true"),
        inngest.TriggerCron(cron="0 0 1 1 *"),
    ],
    cancel=[
        inngest.Cancel(
            event="conformance/cancel", if_exp="event.data.id == async.data.id", timeout=dt.timedelta(hours=1)
        )
    ],
    concurrency=[inngest.Concurrency(limit=2, key="event.data.user", scope="fn")],
    idempotency="event.data.id",
    priority=inngest.Priority(run="event.data.vip ? 60 : 0"),
    throttle=inngest.Throttle(limit=5, period=dt.timedelta(minutes=1), burst=2, key="event.data.user"),
    timeouts=inngest.Timeouts(start=dt.timedelta(seconds=10), finish=dt.timedelta(minutes=5)),
)
async def configured(ctx: Any) -> Any:
    return "configured"


@function(
    "limited",
    debounce=inngest.Debounce(period=dt.timedelta(seconds=5), timeout=dt.timedelta(minutes=1), key="event.data.user"),
    singleton=inngest.Singleton(mode="skip", key="event.data.user"),
)
async def limited(ctx: Any) -> Any:
    return "limited"


@function("batched", batch_events=inngest.Batch(max_size=10, timeout=dt.timedelta(seconds=30), key="event.data.user"))
async def batched(ctx: Any) -> Any:
    return len(ctx.events)


@function("rated", rate_limit=inngest.RateLimit(limit=3, period=dt.timedelta(hours=1), key="event.data.user"))
async def rated(ctx: Any) -> Any:
    return "rated"


if hasattr(inngest.Step, "wait_for_signal"):

    @function("signal")
    async def signal(ctx: Any) -> Any:
        found = await ctx.step.wait_for_signal(
            "signal", signal="conformance-signal", timeout=dt.timedelta(hours=1), on_conflict="replace"
        )
        return None if found is None else {"signal": found.signal, "data": found.data}


if hasattr(inngest.Step, "fetch"):

    @function("fetch")
    async def fetch(ctx: Any) -> Any:
        answer = await ctx.step.fetch(
            "get", "http://host.test/path", method="POST", headers={"x-test": "1"}, body={"n": 1}
        )
        return {"status": answer.status_code, "json": answer.json()}


app = fastapi.FastAPI()
framework.serve(app, client, functions)
