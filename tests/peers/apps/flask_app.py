"""An app of the official Python SDK: sync functions in Flask, one for each thing that the SDK can do."""

import datetime as dt
import os
from functools import partial
from typing import Any

import flask
import inngest
import inngest.flask
from inngest.experimental import ai
from inngest_encryption import EncryptionMiddleware

APP_ID = os.environ["PEER_APP_ID"]
SECOND = dt.timedelta(seconds=1)

client = inngest.Inngest(app_id=APP_ID)
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


def value(of: Any) -> Any:
    return of


@function("run")
def run(ctx: inngest.ContextSync) -> Any:
    first = ctx.step.run("load", value, {"id": 7, "placed": "2026-01-02"})
    again = ctx.step.run("load", value, first["id"] + 1)
    return {"id": again, "placed": first["placed"]}


@function("sleep")
def sleep(ctx: inngest.ContextSync) -> str:
    ctx.step.sleep("nap", SECOND)
    ctx.step.sleep("milliseconds", 500)
    ctx.step.sleep_until("until", dt.datetime.now(dt.UTC) + SECOND)
    return "rested"


@function("wait")
def wait(ctx: inngest.ContextSync) -> Any:
    found = ctx.step.wait_for_event(
        "wait", event=f"{APP_ID}/answer", if_exp="event.data.id == async.data.id", timeout=dt.timedelta(minutes=1)
    )
    return None if found is None else found.data


@function("wait-timeout")
def wait_timeout(ctx: inngest.ContextSync) -> Any:
    return ctx.step.wait_for_event("wait", event=f"{APP_ID}/never", timeout=SECOND)


@function("child")
def child(ctx: inngest.ContextSync) -> Any:
    return {"id": ctx.event.data["id"], "placed": "2026-01-01"}


@function("failing-child", retries=0)
def failing_child(ctx: inngest.ContextSync) -> None:
    raise ValueError("the child failed")


@function("invoke")
def invoke(ctx: inngest.ContextSync) -> Any:
    typed = ctx.step.invoke("typed", function=child, data={"id": 3}, timeout=dt.timedelta(minutes=1))
    by_id = ctx.step.invoke_by_id("by-id", app_id=APP_ID, function_id="child", data={"id": 4})
    try:
        ctx.step.invoke("failing", function=failing_child)
    except inngest.StepError as error:
        return {"typed": typed["id"], "by_id": by_id, "error": error.message}


@function("send")
def send(ctx: inngest.ContextSync) -> int:
    events = [inngest.Event(name=f"{APP_ID}/received", data={"n": n}) for n in range(2)]
    return len(ctx.step.send_event("send", events))


@function("received")
def received(ctx: inngest.ContextSync) -> Any:
    return ctx.event.data


@function("parallel")
def parallel(ctx: inngest.ContextSync) -> Any:
    return ctx.group.parallel(
        (
            partial(ctx.step.run, "one", value, 1),
            partial(ctx.step.sleep, "nap", 500),
            partial(ctx.step.invoke_by_id, "call", function_id="child", data={"id": 5}),
            partial(ctx.step.run, "two", value, 2),
        )
    )


@function("race")
def race(ctx: inngest.ContextSync) -> Any:
    def branch(*ids: str) -> list[str]:
        return [ctx.step.run(step_id, value, step_id) for step_id in ids]

    branches = (partial(branch, "l1", "l2", "l3"), partial(branch, "r1", "r2"))
    found = ctx.group.parallel(branches, parallel_mode=inngest.ParallelMode.RACE)
    return [*found, ctx.step.run("after", value, "after")]


@function("infer")
def infer(ctx: inngest.ContextSync) -> Any:
    adapter = ai.anthropic.Adapter(auth_key="sk-peer-secret", base_url=str(ctx.event.data["provider"]), model="small")
    answer: Any = ctx.step.ai.infer("ask", adapter=adapter, body={"messages": [], "max_tokens": 10})
    return answer["choices"][0]


@function("retry")
def retry(ctx: inngest.ContextSync) -> int:
    if ctx.attempt == 0:
        raise ValueError("the first attempt fails")
    return ctx.attempt


@function("step-retry")
def step_retry(ctx: inngest.ContextSync) -> str:
    def flaky() -> str:
        if is_first(ctx.run_id, "flaky"):
            raise ValueError("the first attempt fails")
        return "second"

    return ctx.step.run("flaky", flaky)


@function("step-fail", retries=0)
def step_fail(ctx: inngest.ContextSync) -> Any:
    def bad() -> None:
        raise LookupError("bad step")

    try:
        ctx.step.run("bad", bad)
    except inngest.StepError as error:
        kept = bool(error.stack and "bad step" in error.stack)
        return {"name": error.name, "message": error.message, "stack": kept}


@function("non-retriable")
def non_retriable(ctx: inngest.ContextSync) -> None:
    raise inngest.NonRetriableError("no more")


@function("step-non-retriable")
def step_non_retriable(ctx: inngest.ContextSync) -> None:
    def bad() -> None:
        raise inngest.NonRetriableError("no more")

    ctx.step.run("bad", bad)


@function("retry-after")
def retry_after(ctx: inngest.ContextSync) -> int:
    if ctx.attempt == 0:
        raise inngest.RetryAfterError("soon", SECOND)
    return ctx.attempt


@function("step-retry-after")
def step_retry_after(ctx: inngest.ContextSync) -> str:
    def flaky() -> str:
        if is_first(ctx.run_id, "flaky"):
            raise inngest.RetryAfterError("soon", 1000)
        return "second"

    return ctx.step.run("flaky", flaky)


def on_failure(ctx: inngest.ContextSync) -> Any:
    data: Any = ctx.event.data
    message = ctx.step.run("message", value, data["error"]["message"])
    return {"message": message, "event": data["event"]["name"]}


@function("guarded", retries=0, on_failure=on_failure)
def guarded(ctx: inngest.ContextSync) -> None:
    raise ValueError("guarded failed")


@function(
    "triggers",
    trigger=[
        inngest.TriggerEvent(event=f"{APP_ID}/triggers"),
        inngest.TriggerEvent(event=f"{APP_ID}/triggers-b", expression="event.data.id > 0"),
        inngest.TriggerCron(cron="0 0 1 1 *"),
    ],
)
def triggers(ctx: inngest.ContextSync) -> str:
    return ctx.event.name


@function("large")
def large(ctx: inngest.ContextSync) -> int:
    parts = [ctx.step.run("part", value, "x" * 1_500_000) for _ in range(3)]
    return sum(len(part) for part in parts)


class Wrapping(inngest.MiddlewareSync):
    """Uses what middleware can change: input, and the outputs of steps and of the function."""

    def transform_input(self, ctx: Any, function: Any, steps: Any) -> None:
        ctx.event.data = {**ctx.event.data, "added": True}

    def transform_output(self, result: inngest.TransformOutputResult) -> None:
        if result.has_output():
            result.output = {"step" if result.step else "function": result.output}


@function("middleware", middleware=[Wrapping])
def middleware(ctx: inngest.ContextSync) -> Any:
    return [ctx.event.data["added"], ctx.step.run("a", value, 1)]


@function("encrypted", middleware=[EncryptionMiddleware.factory("a key of the app's own")])
def encrypted(ctx: inngest.ContextSync) -> Any:
    found = ctx.step.run("secret", value, "plain text of a step")
    assert found == "plain text of a step"
    return found


app = flask.Flask(__name__)
inngest.flask.serve(app, client, functions)
