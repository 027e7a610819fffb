"""Functions with groups of parallel steps: seconds and CPU seconds of their runs."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import durably
from benchmarks.children import Answerer, family_cpu_seconds, serve
from benchmarks.serving import in_process, over_http

from .durably_runs import EVENT, charge
from .load import PATIENCE_SECONDS


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    """The argument is ``http`` or ``in-process``."""
    ended: asyncio.Queue[None] = asyncio.Queue()

    async def run_groups(ctx: durably.Context) -> None:
        data = ctx.event.data
        for group in range(data["groups"]):
            if data["width"] == 1:
                await ctx.step.run(f"charge-{group}", charge, group)
                continue
            await asyncio.gather(
                *(ctx.step.run(f"charge-{group}-{number}", charge, number) for number in range(data["width"]))
            )
        ended.put_nowait(None)

    def make_functions(client: durably.Client) -> list[durably.Function[Any]]:
        return [
            client.create_function(
                fn_id=f"groups-{checkpointing}",
                trigger=durably.TriggerEvent(event=f"{EVENT}/{checkpointing}"),
                checkpointing=checkpointing,
            )(run_groups)
            for checkpointing in (False, True)
        ]

    open_engine = over_http if arguments == ["http"] else in_process
    async with open_engine(directory, make_functions) as (client, settle):

        async def answer(question: dict[str, Any]) -> float:
            """Seconds of a run; of ``runs`` at once the CPU seconds, of app and engine."""
            name, runs = f"{EVENT}/{question.get('checkpointing', False)}", question.get("runs", 1)
            start, cpu = time.perf_counter(), family_cpu_seconds()
            await client.send([durably.Event(name=name, data=question) for _ in range(runs)])
            async with asyncio.timeout(PATIENCE_SECONDS):
                for _ in range(runs):
                    await ended.get()
            await settle()
            return family_cpu_seconds() - cpu if "runs" in question else time.perf_counter() - start

        yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
