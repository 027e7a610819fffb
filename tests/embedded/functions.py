"""The functions of the apps under test. They write a line for each step to a file, so that tests can count."""

import asyncio
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from durably import Client, Context, ContextSync, Event, Function, TriggerEvent

STEPS = 4


class Diary:
    """Lines are shorter than an atomic write of the system, so that processes do not mix their lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, what: str, **more: Any) -> str:
        line = json.dumps({"what": what, "process": os.getpid(), "at": time.time(), **more})
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)
        return what

    def entries(self, what: str | None = None) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        entries = [json.loads(line) for line in self._path.read_text().splitlines()]
        return [entry for entry in entries if what in (None, entry["what"])]


def make_functions(client: Client, diary: Diary) -> list[Function[Any]]:
    @client.create_function(fn_id="count", trigger=TriggerEvent(event="count"), retries=20)
    async def count(ctx: Context) -> int:
        for number in range(STEPS):
            await ctx.step.run(f"step-{number}", diary.note, "step", run=ctx.run_id, step=number)
        return STEPS

    @client.create_function(fn_id="count-sync", trigger=TriggerEvent(event="count-sync"), retries=20)
    def count_sync(ctx: ContextSync) -> int:
        for number in range(STEPS):
            ctx.step.run(f"step-{number}", diary.note, "step", run=ctx.run_id, step=number)
        return STEPS

    @client.create_function(fn_id="relay", trigger=TriggerEvent(event="relay"))
    def relay(ctx: ContextSync) -> str:
        ctx.step.send_event("pass-on", Event(name="count"))
        client.send_sync(Event(name="count", id=ctx.run_id))
        return threading.current_thread().name

    @client.create_function(fn_id="hold", trigger=TriggerEvent(event="hold"), retries=20)
    def hold(ctx: ContextSync) -> int:
        """Block its process until the file that the event names exists."""

        def wait() -> int:
            diary.note("held", run=ctx.run_id, attempt=ctx.attempt)
            while not os.path.exists(ctx.event.data["until"]):
                time.sleep(0.01)
            return os.getpid()

        return ctx.step.run("wait", wait)

    @client.create_function(fn_id="hold-async", trigger=TriggerEvent(event="hold-async"), retries=20)
    async def hold_async(ctx: Context) -> int:
        async def wait() -> int:
            diary.note("held", run=ctx.run_id, attempt=ctx.attempt)
            while not os.path.exists(ctx.event.data["until"]):  # noqa: ASYNC110, ASYNC240
                await asyncio.sleep(0.01)
            return os.getpid()

        return await ctx.step.run("wait", wait)

    @client.create_function(fn_id="between", trigger=TriggerEvent(event="between"), retries=20)
    def between(ctx: ContextSync) -> None:
        """Wait between two steps until the file that the event names exists."""
        ctx.step.run("first", diary.note, "first", run=ctx.run_id)
        diary.note("between", run=ctx.run_id)
        try:
            while not os.path.exists(ctx.event.data["until"]):
                time.sleep(0.01)
            ctx.step.run("second", diary.note, "second", run=ctx.run_id)
        finally:
            diary.note("left", run=ctx.run_id)

    @client.create_function(fn_id="between-async", trigger=TriggerEvent(event="between-async"), retries=20)
    async def between_async(ctx: Context) -> None:
        await ctx.step.run("first", diary.note, "first", run=ctx.run_id)
        diary.note("between", run=ctx.run_id)
        try:
            while not os.path.exists(ctx.event.data["until"]):  # noqa: ASYNC110, ASYNC240
                await asyncio.sleep(0.01)
            await ctx.step.run("second", diary.note, "second", run=ctx.run_id)
        finally:
            diary.note("left", run=ctx.run_id)

    def charge(seconds: float, run: str) -> str:
        diary.note("charged", run=run)
        time.sleep(seconds)
        return "paid"

    async def charge_on_the_loop(seconds: float, run: str) -> str:
        return charge(seconds, run)

    @client.create_function(fn_id="pay", trigger=TriggerEvent(event="pay"))
    async def pay(ctx: Context) -> str:
        """The step blocks for longer than the lease: a sync handler, or one that blocks the event loop."""
        handler = charge_on_the_loop if ctx.event.data["blocks_loop"] else charge
        return await ctx.step.run("charge", handler, ctx.event.data["seconds"], ctx.run_id)

    @client.create_function(fn_id="signal", trigger=TriggerEvent(event="signal"), retries=1)
    def signal_itself(ctx: ContextSync) -> None:
        """The step kills or stops its process."""

        def kill() -> None:
            diary.note("signalled", run=ctx.run_id, attempt=ctx.attempt)
            os.kill(os.getpid(), ctx.event.data["signal"])
            time.sleep(60)

        ctx.step.run("kill", kill)

    return [count, count_sync, relay, hold, hold_async, between, between_async, pay, signal_itself]
