"""Right and wrong calls of steps. `make lint` checks the file with mypy and pyright; nothing runs it.

Each wrong call carries an ignore comment. Both checkers report a comment that suppresses nothing, so the check fails if
one of them accepts a wrong call.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

import asyncio
import dataclasses
from decimal import Decimal
from typing import assert_type

import durably

client = durably.Client(app_id="typing", is_production=False)


@dataclasses.dataclass
class Charge:
    amount: Decimal


async def charge(order: str, amount: int, *, currency: str = "EUR") -> Charge:
    return Charge(Decimal(amount))


def charge_sync(order: str, amount: int, *, currency: str = "EUR") -> Charge:
    return Charge(Decimal(amount))


async def pages() -> list[Charge]:
    return []


@client.create_function(fn_id="async", trigger=durably.TriggerEvent(event="never"))
async def async_function(ctx: durably.Context) -> None:
    run = ctx.step.run
    assert_type(await run("right", charge, "A-1", 1), Charge)
    assert_type(await run("right", charge, "A-1", amount=1, currency="USD"), Charge)
    assert_type(await run("right", charge_sync, "A-1", 1), Charge)
    assert_type(await run("right", lambda: 5), int)
    assert_type(await run("right", Charge, Decimal(1)), Charge)
    assert_type(await run("right", charge, "A-1", 1, output_type=Charge), Charge)
    assert_type(await run("right", pages, output_type=list[Charge]), list[Charge])
    assert_type(await ctx.step.ai.wrap("right", charge, "A-1", 1), Charge)

    await run("too few", charge, "A-1")  # type: ignore[call-overload]
    await run("too many", pages, 1)  # type: ignore[call-overload]
    await run("wrong type", charge, "A-1", "1")  # type: ignore[call-overload]
    await run("unknown name", charge, "A-1", 1, colour="red")  # type: ignore[call-arg]
    await run("sync", charge_sync, 1, 1)  # type: ignore[call-overload]
    await run("no handler", "charge")  # type: ignore[call-overload]
    await run("called", charge_sync("A-1", 1))  # type: ignore[call-overload]
    text: str = await run("result", charge, "A-1", 1)  # type: ignore[call-overload]
    await ctx.step.ai.wrap("wrong type", charge, 1, 1)  # type: ignore[arg-type]
    durably.ai.record_usage(model="gpt", input_tokens=1)
    durably.ai.record_usage("gpt", 1)  # type: ignore[call-arg]
    durably.ai.record_usage(model="gpt", input_tokens="1")  # type: ignore[arg-type]
    await ctx.step.invoke("data", function=sync_function, data=1)  # type: ignore[arg-type]
    await ctx.step.invoke("name", function="sync")  # type: ignore[arg-type]
    number: int = await ctx.step.invoke("result", function=sync_function)  # type: ignore[arg-type]
    print(text, number)


@client.create_function(fn_id="sync", trigger=durably.TriggerEvent(event="never"))
def sync_function(ctx: durably.ContextSync) -> Charge:
    run = ctx.step.run
    assert_type(run("right", charge_sync, "A-1", amount=1), Charge)
    assert_type(run("right", charge_sync, "A-1", 1, output_type=Charge), Charge)
    assert_type(run("right", lambda: "text"), str)

    run("too few", charge_sync, "A-1")  # type: ignore[call-overload]
    run("wrong type", charge_sync, "A-1", "1")  # type: ignore[call-overload]
    run("unknown name", charge_sync, "A-1", 1, colour="red")  # type: ignore[call-arg]
    text: str = run("result", charge_sync, "A-1", 1)  # type: ignore[assignment]
    print(text)
    return Charge(Decimal(1))


async def number() -> int:
    return 1


async def text() -> str:
    return ""


@client.create_function(fn_id="parallel", trigger=durably.TriggerEvent(event="never"))
async def parallel_function(ctx: durably.Context) -> None:
    step, parallel = ctx.step, ctx.group.parallel
    two = await parallel((lambda: step.run("a", number), lambda: step.run("b", text)))
    assert_type(two, tuple[int, str])
    assert_type(await parallel((number, text, number)), tuple[int, str, int])
    assert_type(await parallel((number, text, number, text)), tuple[int, str, int, str])
    assert_type(await parallel((number, text, number, text, pages)), tuple[int, str, int, str, list[Charge]])
    six = await parallel((number, text, number, text, pages, number))
    assert_type(six, tuple[int, str, int, str, list[Charge], int])
    assert_type(await parallel([number, number]), tuple[int, ...])
    assert_type(await parallel([lambda: step.run("a", number)]), tuple[int, ...])
    assert_type(await asyncio.gather(step.run("a", number), step.run("b", text)), tuple[int, str])

    first, second = await parallel((number, text))
    wrong: str = first  # type: ignore[assignment]
    also_wrong: int = second  # type: ignore[assignment]
    await parallel((step.run("a", number), step.run("b", text)))  # type: ignore[arg-type]
    print(wrong, also_wrong)


@client.create_function(fn_id="parallel-sync", trigger=durably.TriggerEvent(event="never"))
def parallel_sync_function(ctx: durably.ContextSync) -> None:
    run, parallel = ctx.step.run, ctx.group.parallel
    five = parallel((lambda: run("a", int), lambda: run("b", str), lambda: 1, lambda: 1.0, lambda: b""))
    assert_type(five, tuple[int, str, int, float, bytes])
    six = parallel((lambda: run("a", int), lambda: run("b", str), lambda: 1, lambda: 1.0, lambda: b"", lambda: ""))
    assert_type(six, tuple[int, str, int, float, bytes, str])
    parallel((run("a", int), run("b", str)))  # type: ignore[arg-type]
