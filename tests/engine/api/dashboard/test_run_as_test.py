"""The code of tests that reproduce runs: it is executed with the app of the run, and with a mended one."""

import ast
import asyncio
import datetime as dt
import sys
from types import ModuleType
from typing import Any

import pytest

import durably
from durably.engine.api.dashboard.run_as_test import write_test
from durably.engine.model.runs import RunReport
from durably.testing.engine import TestEngine, TestRun

Functions = dict[str, durably.Function[Any]]


def warehouse(prices: list[Any], executed: list[str]) -> tuple[durably.Client, Functions]:
    """An app whose steps record their executions. The total fails if a price is not a number."""
    client = durably.Client(app_id="warehouse")

    @client.create_function(fn_id="count-stock", trigger=durably.TriggerEvent(event="stock/count"), retries=0)
    async def count_stock(ctx: durably.Context) -> dict[str, Any]:
        async def shelf(number: int) -> dict[str, Any]:
            executed.append(f"shelf {number}")
            return {"number": number, "text": "\u202e<b>'\"\n", "price": prices[number]}

        async def total() -> float:
            executed.append("total")
            return float(sum(float(each["price"]) for each in shelves))

        # Three repetitions of one id.
        shelves = [await ctx.step.run("shelf", shelf, number) for number in range(3)]
        await ctx.step.sleep("night", dt.timedelta(hours=8))
        order = await ctx.step.wait_for_event("order", event="stock/ordered", timeout=dt.timedelta(days=1))
        signal = await ctx.step.wait_for_signal("go", signal="go-1", timeout=dt.timedelta(days=1))
        late = await ctx.step.wait_for_event("late", event="stock/late", timeout=dt.timedelta(minutes=1))
        label = await ctx.step.invoke("label", function=print_label, data={"order": order and order.data["id"]})
        await ctx.step.send_event("announce", durably.Event(name="stock/counted", data={}))
        found = await asyncio.gather(ctx.step.run("left", lambda: 1), ctx.step.run("right", lambda: 2))
        return {
            "total": await ctx.step.run("total", total),
            "order": order and order.data,
            "go": signal and signal.data,
            "late": late,
            "label": label,
            "found": found,
        }

    @client.create_function(fn_id="print-label", trigger=durably.TriggerEvent(event="label/asked"))
    async def print_label(ctx: durably.Context) -> str:
        executed.append("label")
        return f"label of {ctx.event.data['order']}"

    return client, {"count_stock": count_stock, "print_label": print_label}


async def run_count(prices: list[Any]) -> RunReport:
    client, functions = warehouse(prices, [])
    async with TestEngine(client, list(functions.values())) as engine:
        run = await engine.send(durably.Event(name="stock/count", data={"month": "März", "deep": {"a": [1, None]}}))
        await engine.advance(dt.timedelta(hours=9))
        await engine.send([durably.Event(name="stock/ordered", data={"id": 17})])
        await engine.advance(dt.timedelta(seconds=1))
        assert await engine.signal("go-1", {"by": "Ada"})
        await run.wait()
        return await report_of(engine, run)


async def report_of(engine: TestEngine, run: TestRun) -> RunReport:
    report = await engine._engine.inspect_run(run.id)
    assert report is not None
    return report


async def execute(code: str, client: durably.Client, functions: Functions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute the test in the code, with its ``app`` module."""
    app = ModuleType("app")
    app.__dict__.update(functions, client=client)
    monkeypatch.setitem(sys.modules, "app", app)
    module = ModuleType("copied_test")
    exec(compile(code, "copied_test.py", "exec"), module.__dict__)
    [test] = [value for name, value in vars(module).items() if name.startswith("test_")]
    await test()


async def test_the_test_of_a_failed_run_fails_until_the_code_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    report = await run_count([1, "n/a", 3])
    assert report.run.status == "Failed"
    code = write_test(report)
    assert "M\u00e4rz" in code
    assert "\u202e" not in code

    executed = list[str]()
    with pytest.raises(AssertionError, match="could not convert string to float"):
        await execute(code, *warehouse([1, 2, 3], executed), monkeypatch)
    assert executed == ["total"]  # The step that failed, with what the others returned in the run.

    mended = code.replace('"n/a"', '"2"')
    await execute(mended, *warehouse([0, 0, 0], []), monkeypatch)


async def test_the_test_of_a_completed_run_asserts_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    report = await run_count([1, 2, 3])
    assert report.run.status == "Completed"
    executed = list[str]()
    await execute(write_test(report), *warehouse([7, 7, 7], executed), monkeypatch)
    assert executed == []
    changed = write_test(report).replace('"total": 6.0', '"total": 7.0')
    with pytest.raises(AssertionError, match="output"):
        await execute(changed, *warehouse([7, 7, 7], []), monkeypatch)


async def test_a_large_output_is_left_out_and_named() -> None:
    client = durably.Client(app_id="big")

    @client.create_function(fn_id="3-big.things!", trigger=durably.TriggerEvent(event="big/start"))
    async def big(ctx: durably.Context) -> None:
        await ctx.step.run("produce", lambda: "x" * 100_000)

    async with TestEngine(client, [big]) as engine:
        run = await engine.send(durably.Event(name="big/start"))
        await run.wait()
        code = write_test(await report_of(engine, run))
    assert '# The output of the step "produce" has 100 kB, so it is executed.' in code
    assert "from app import client, fn_3_big_things" in code
    assert len(code) < 2_000
    compile(code, "copied_test.py", "exec")


async def test_the_id_of_a_function_does_not_end_the_docstring() -> None:
    client = durably.Client(app_id="hostile")

    @client.create_function(fn_id='x""" + print("run") + """\\', trigger=durably.TriggerEvent(event="hostile/start"))
    async def hostile(ctx: durably.Context) -> None: ...

    async with TestEngine(client, [hostile]) as engine:
        run = await engine.send(durably.Event(name="hostile/start"))
        await run.wait()
        report = await report_of(engine, run)
    docstring = ast.get_docstring(ast.parse(write_test(report)))
    assert docstring == f"Reproduces the run {run.id} of {report.run.function_id}, which completed."
