"""An app whose names, errors and outputs attack the pages that show them."""

import asyncio
from dataclasses import dataclass
from typing import Literal

import fastapi

import durably
import durably.fast_api

SCRIPT = '"><script>document.title = "taken"</script><img src=x onerror=alert(1)>'
ESCAPES = "\x1b[31mred\x1b[0m \x07 \u202eevil\u202c"
RIGHT_TO_LEFT = "שלום עולם مرحبا بالعالم"

client = durably.Client(app_id="hostile", is_production=False)
app = fastapi.FastAPI()


@client.create_function(
    fn_id="names", name=SCRIPT, trigger=durably.TriggerEvent(event="hostile/names", expression="true"), retries=0
)
async def names(ctx: durably.Context) -> object:
    ctx.logger.info("%s %s", SCRIPT, ESCAPES)
    for name in (SCRIPT, ESCAPES, RIGHT_TO_LEFT, "x" * 200):
        await ctx.step.run(name, output, name)
    raise ValueError(SCRIPT + ESCAPES + RIGHT_TO_LEFT)


async def output(name: str) -> object:
    return {name: [name, "</script>", "javascript:alert(1)", None, True, 1e300]}


@dataclass
class Decision:
    approved: bool
    colour: Literal['"><script>', "red"] = "red"
    reason: str = ""


@client.create_function(fn_id="question", trigger=durably.TriggerEvent(event="hostile/question"))
async def question(ctx: durably.Context) -> object:
    asked = await ctx.step.receive(SCRIPT, type=Decision, prompt=SCRIPT + ESCAPES + RIGHT_TO_LEFT)
    return [asked.data.approved, asked.data.colour, asked.data.reason]


@client.create_function(fn_id="large", trigger=durably.TriggerEvent(event="hostile/large"))
async def large(ctx: durably.Context) -> object:
    """An output of 4 MB, which the engine just takes."""
    return {"text": "é" * 1_000_000, "items": [{"number": number} for number in range(100_000)]}


@client.create_function(fn_id="steps", trigger=durably.TriggerEvent(event="hostile/steps"))
async def steps(ctx: durably.Context) -> int:
    results = await asyncio.gather(*(ctx.step.run(f"step-{n}", double, n) for n in range(1_000)))
    return len(results)


async def double(number: int) -> int:
    return 2 * number


durably.fast_api.serve(app, client, [names, question, large, steps])
