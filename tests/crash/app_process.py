"""The app of the crash tests: functions of all kinds of steps, and a diary of each execution of one.

``python -m tests.crash.app_process PORT DIARY``, with ``DURABLY_DEV`` naming the engine. It dials the engine if PORT is
"connect". The diary is appended to, one
line of JSON an execution, so that it survives the process. Each execution returns a token of its own: a step's memo
decides which of its executions counts.
"""

import asyncio
import datetime as dt
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import tornado.web

import durably
import durably.tornado
from durably import (
    Batch,
    Checkpointing,
    Concurrency,
    Context,
    ContextSync,
    Debounce,
    Event,
    Function,
    Throttle,
    Timeouts,
    TriggerCron,
    TriggerEvent,
)
from durably.cli.service import run_until_stopped

NAP = dt.timedelta(milliseconds=150)
SLEEP = dt.timedelta(seconds=4)
PATIENCE = dt.timedelta(seconds=2)
WORK_SECONDS = (0.05, 1.2)
"""Most steps are soon done; some last for longer than an engine takes to be back, or than a good part of its lease."""
RETRIES = 20
"""An app that is killed loses attempts; none of the functions below are to fail of that."""


class Diary:
    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def execute(self, ctx: Context | ContextSync, step: str) -> str:
        """Note that a step is executed, by which call, and answer with a token of this execution."""
        generation = int((ctx.request_id or "").rpartition(".")[2])
        line = {
            "run": ctx.run_id,
            "step": step,
            "generation": generation,
            "token": os.urandom(8).hex(),
            "at": time.time_ns() // 1_000_000,
        }
        os.write(self._file, json.dumps(line).encode() + b"\n")
        time.sleep(0.005)
        return str(line["token"])

    async def work(self, ctx: Context, step: str) -> str:
        """The same for a step that takes its time, in which much may happen to its app and engine."""
        token = self.execute(ctx, step)
        await asyncio.sleep(random.choices(WORK_SECONDS, (9, 1))[0])
        return token


async def ask(ctx: Context) -> None:
    """Ask until there is an answer: it may come before the wait for it has begun."""
    asked = 0
    while True:
        key = f"{ctx.run_id}-{asked}"
        await ctx.step.send_event(f"ask {asked}", Event(name="crash/asked", id=key, data=ctx.event.data))
        found = await ctx.step.wait_for_event(
            f"wait {asked}",
            event="crash/answered",
            if_exp="async.data.number == event.data.number",
            timeout=PATIENCE,
        )
        if found is not None:
            return
        asked += 1


def define(client: durably.Client, diary: Diary) -> list[Function[Any]]:
    @client.create_function(fn_id="child", trigger=TriggerEvent(event="crash/never"), retries=RETRIES)
    async def child(ctx: Context) -> str:
        return await ctx.step.run("born", diary.execute, ctx, "born")

    @client.create_function(fn_id="answer", trigger=TriggerEvent(event="crash/asked"), retries=RETRIES)
    async def answer(ctx: Context) -> None:
        await ctx.step.sleep("think", NAP)
        await ctx.step.run("thought", diary.execute, ctx, "thought")
        event = Event(name="crash/answered", id=f"answer-{ctx.event.id}", data=ctx.event.data)
        await ctx.step.send_event("answer", event)

    async def travel(ctx: Context) -> list[str]:
        """The tokens that the steps returned."""

        async def step(name: str) -> str:
            return await ctx.step.run(name, diary.work, ctx, name)

        async def flaky(name: str) -> str:
            token = diary.execute(ctx, name)
            if ctx.attempt == 0:
                raise RuntimeError("not yet")
            return token

        async def branch(name: str) -> str:
            await ctx.step.sleep(f"{name} nap", NAP)
            return await step(f"{name} end")

        tokens = [await step("first")]
        await ctx.step.sleep("nap", NAP)
        tokens += await ctx.group.parallel(tuple(lambda name=name: step(name) for name in ("a", "b", "c")))  # type: ignore[misc]
        tokens.append(await ctx.step.run("flaky", flaky, "flaky"))
        tokens.append(await ctx.step.invoke("child", function=child, data={}))
        tokens += await asyncio.gather(step("d"), branch("e"), branch("f"))
        await ask(ctx)
        tokens.append(await step("last"))
        return tokens

    @client.create_function(fn_id="journey", trigger=TriggerEvent(event="crash/journey"), retries=RETRIES)
    async def journey(ctx: Context) -> list[str]:
        return await travel(ctx)

    @client.create_function(
        fn_id="voyage",
        trigger=TriggerEvent(event="crash/voyage"),
        retries=RETRIES,
        checkpointing=Checkpointing(buffered_steps=2),
    )
    async def voyage(ctx: Context) -> list[str]:
        """The same, handing its steps over while it goes on."""
        return await travel(ctx)

    @client.create_function(
        fn_id="walk",
        trigger=TriggerEvent(event="crash/walk"),
        retries=RETRIES,
        checkpointing=True,
        concurrency=[Concurrency(limit=2)],
        timeouts=Timeouts(finish=dt.timedelta(hours=1)),
    )
    def walk(ctx: ContextSync) -> list[str]:
        tokens = [ctx.step.run(f"pace {number}", diary.execute, ctx, f"pace {number}") for number in range(4)]
        ctx.step.sleep("rest", NAP)
        tokens.append(ctx.step.invoke("child", function=child, data={}))
        return [*tokens, ctx.step.run("last", diary.execute, ctx, "last")]

    @client.create_function(
        fn_id="doze",
        trigger=TriggerEvent(event="crash/doze"),
        retries=RETRIES,
        throttle=Throttle(limit=1, period=dt.timedelta(seconds=1)),
    )
    async def doze(ctx: Context) -> None:
        """Is asleep for longer than an engine is down."""
        await ctx.step.run("lie down", diary.execute, ctx, "lie down")
        await ctx.step.sleep("sleep", SLEEP)
        await ctx.step.run("get up", diary.execute, ctx, "get up")

    @client.create_function(
        fn_id="batch",
        trigger=TriggerEvent(event="crash/batch"),
        retries=RETRIES,
        batch_events=Batch(max_size=3, timeout=dt.timedelta(seconds=2)),
    )
    async def batch(ctx: Context) -> None:
        await ctx.step.run("batched", diary.execute, ctx, "batched")

    @client.create_function(
        fn_id="settle",
        trigger=TriggerEvent(event="crash/settle"),
        retries=RETRIES,
        debounce=Debounce(period=dt.timedelta(seconds=1), key="event.data.number % 3"),
    )
    async def settle(ctx: Context) -> None:
        await ctx.step.run("settled", diary.execute, ctx, "settled")

    async def clean_up(ctx: Context) -> str:
        return await ctx.step.run("cleaned", diary.execute, ctx, "cleaned")

    @client.create_function(
        fn_id="doomed", trigger=TriggerEvent(event="crash/doomed"), retries=RETRIES, on_failure=clean_up
    )
    async def doomed(ctx: Context) -> None:
        def fail() -> None:
            diary.execute(ctx, "fall")
            raise durably.NonRetriableError("as it had to be")

        await ctx.step.run("fall", fail)

    @client.create_function(fn_id="tick", trigger=TriggerCron(cron="* * * * *"), retries=RETRIES)
    async def tick(ctx: Context) -> None:
        await ctx.step.run("ticked", diary.execute, ctx, "ticked")

    @client.create_function(fn_id="tock", trigger=TriggerCron(cron="* * * * *", jitter="30s"), retries=RETRIES)
    async def tock(ctx: Context) -> None:
        """The same, each time a little later than it should be."""
        await ctx.step.run("ticked", diary.execute, ctx, "ticked")

    return [child, answer, journey, voyage, walk, doze, batch, settle, doomed, tick, tock]


async def main(port: str, diary: Diary) -> None:
    client = durably.Client(app_id="crash", is_production=False)
    if port == "connect":
        connection = durably.connect([(client, define(client, diary))])
        try:
            await connection.start()
        finally:
            await connection.close()
        return
    app = tornado.web.Application()
    durably.tornado.serve(app, client, define(client, diary))
    app.listen(int(port), "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    run = run_until_stopped if sys.argv[1] == "connect" else asyncio.run
    run(main(sys.argv[1], Diary(Path(sys.argv[2]))))
