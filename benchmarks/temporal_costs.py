"""Events of history and billable actions of runs on Temporal: ``python -m benchmarks.temporal_costs [--save]``.

Runs each case on a development server, reads the histories of all workflows that it started or signalled, and counts.
``--save`` writes the table into the reference. Actions are counted by https://docs.temporal.io/cloud/actions: queries
and heartbeats are in no history, and the cases have none.
"""

import argparse
import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastapi
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client

import durably
import durably.fast_api

from .contenders.temporal_server import dev_server
from .tables import table

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "engine-on-temporal.md"
_BEGIN, _END = "<!-- costs: begin -->\n", "<!-- costs: end -->\n"
STEPS = 20
_ENDING_LATER = ("durably.Bucket", "durably.LimitQueue", "durably.Wait")

_BILLED = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED,
    EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED,
    EventType.EVENT_TYPE_TIMER_STARTED,
    EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES,
}


@dataclass(frozen=True)
class Cost:
    events: int = 0
    actions: int = 0


@dataclass(frozen=True)
class Case:
    """An event, by its name below ``cost/``, and all that follows from it."""

    label: str
    event: str


CASES = [
    Case("one step", "one"),
    Case(f"{STEPS} steps, a call for each (`checkpointing=False`)", "calls"),
    Case(f"{STEPS} steps, a checkpoint for each (the default in process)", "updates"),
    Case(f"{STEPS} steps, `buffered_steps=20`", "buffered"),
    Case("a sleep between two steps", "sleep"),
    Case("two parallel steps", "parallel"),
    Case("an invocation of a function of one step", "invoke"),
    Case("a wait for an event that arrives", "wait"),
    Case("an event that starts two functions of one step each", "two"),
    Case("an event that nothing matches", "nothing"),
    Case("a singleton of one step", "single"),
    Case("one step, `concurrency` of 1 for each customer", "slots"),
    Case("one step, `throttle`", "throttled"),
    Case("one step, `rate_limit`", "rated"),
    Case("one step, `debounce`", "debounced"),
    Case("one step, `idempotency`", "once"),
    Case("one step, a `cancel` entry", "cancellable"),
]


async def _work() -> str:
    return "done"


def define(client: durably.Client) -> list[durably.Function[Any]]:
    functions: list[durably.Function[Any]] = []

    def add(name: str, run: Callable[[durably.Context], Awaitable[Any]], event: str = "", **options: Any) -> Any:
        function = client.create_function(
            fn_id=name, trigger=durably.TriggerEvent(event=f"cost/{event or name}"), **options
        )(run)
        functions.append(function)
        return function

    async def one(ctx: durably.Context) -> None:
        await ctx.step.run("work", _work)

    async def many(ctx: durably.Context) -> None:
        for number in range(STEPS):
            await ctx.step.run(f"work-{number}", _work)

    async def sleep(ctx: durably.Context) -> None:
        await ctx.step.run("before", _work)
        await ctx.step.sleep("nap", dt.timedelta(milliseconds=50))
        await ctx.step.run("after", _work)

    async def parallel(ctx: durably.Context) -> None:
        await asyncio.gather(ctx.step.run("a", _work), ctx.step.run("b", _work))

    async def wait(ctx: durably.Context) -> None:
        await ctx.step.send_event("ask", durably.Event(name="cost/asked", data={"number": 1}))
        await ctx.step.wait_for_event(
            "answer", event="cost/answer", if_exp="async.data.number == 1", timeout=dt.timedelta(minutes=1)
        )

    child = add("one", one)

    async def invoke(ctx: durably.Context) -> None:
        await ctx.step.invoke("child", function=child)

    add("calls", many, checkpointing=False)
    add("updates", many, checkpointing=True)
    add("buffered", many, checkpointing=durably.Checkpointing(buffered_steps=20))
    add("sleep", sleep)
    add("parallel", parallel)
    add("invoke", invoke)
    add("wait", wait)
    add("two-a", one, event="two")
    add("two-b", one, event="two")
    add("single", one, singleton=durably.Singleton(mode="skip"))
    add("slots", one, concurrency=[durably.Concurrency(limit=1, key="event.data.customer")])
    second = dt.timedelta(seconds=1)
    add("throttled", one, throttle=durably.Throttle(limit=10, period=second))
    add("rated", one, rate_limit=durably.RateLimit(limit=10, period=second))
    add("debounced", one, debounce=durably.Debounce(period=second))
    add("once", one, idempotency="event.data.customer")
    add(
        "cancellable",
        one,
        cancel=[durably.Cancel(event="cost/cancel", if_exp="async.data.customer == event.data.customer")],
    )
    return functions


async def measure(address: str) -> dict[Case, Cost]:
    engine = durably.TemporalEngine(address)
    client = durably.Client(app_id="costs", is_production=False, engine=engine)
    durably.fast_api.serve(fastapi.FastAPI(), client, define(client))
    temporal = await Client.connect(address)
    found: dict[Case, Cost] = {}
    async with engine.running():
        await _settle(temporal)
        for case in CASES:
            began = dt.datetime.now(dt.UTC)
            before = await _costs(temporal, began)
            await client.send(durably.Event(name=f"cost/{case.event}", data={"customer": 1}))
            if case.event == "wait":
                await _until_waiting(temporal)
                await client.send(durably.Event(name="cost/answer", data={"number": 1}))
            await _settle(temporal)
            after = await _costs(temporal, began)
            found[case] = Cost(after.events - before.events, after.actions - before.actions)
    return found


async def _until_waiting(temporal: Client) -> None:
    while True:
        if [each async for each in temporal.list_workflows("WorkflowType = 'durably.Wait'")]:
            return
        await asyncio.sleep(0.1)


async def _settle(temporal: Client) -> None:
    """Return when no history has grown for a while: the index of workflows lags, so that it does not say when."""
    before = Cost()
    while (now := await _costs(temporal)) != before:
        before = now
        await asyncio.sleep(3)


async def _costs(temporal: Client, began: dt.datetime | None = None) -> Cost:
    """Of all workflows of the server, but for buckets and waits of before ``began``: they end later than their run."""
    events = actions = 0
    async for each in temporal.list_workflows("StartTime > '2020-01-01T00:00:00Z'"):
        is_of_before = began is not None and each.workflow_type in _ENDING_LATER and each.start_time < began
        if each.workflow_type.startswith("durably.") and not is_of_before:
            history = await temporal.get_workflow_handle(each.id, run_id=each.run_id).fetch_history()
            events += len(history.events)
            actions += count_actions(history.events)
    return Cost(events, actions)


def count_actions(events: Any) -> int:
    """Actions of a history. All local activities of one workflow task are one action."""
    billed = sum(event.event_type in _BILLED for event in events)
    retries = sum(_retries(event) for event in events)
    tasks = {
        event.marker_recorded_event_attributes.workflow_task_completed_event_id
        for event in events
        if event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED
    }
    return billed + retries + len(tasks)


def _retries(event: HistoryEvent) -> int:
    """Attempts of an activity before the one that is in its history."""
    is_started = event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED
    return event.activity_task_started_event_attributes.attempt - 1 if is_started else 0


async def main(*, is_saved: bool) -> None:
    async with dev_server() as address:
        found = await measure(address)
    rows = [[case.label, cost.events, cost.actions] for case, cost in found.items()]
    text = table(["a run with", "events of history", "actions"], rows)
    print(text)
    if is_saved:
        page = PAGE.read_text()
        head, _, rest = page.partition(_BEGIN)
        _, _, tail = rest.partition(_END)
        PAGE.write_text(f"{head}{_BEGIN}\n{text}\n{_END}{tail}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.temporal_costs", description=__doc__)
    parser.add_argument("--save", action="store_true", help=f"write the table into {PAGE.name}")
    asyncio.run(main(is_saved=parser.parse_args().save))
