"""Metrics and the log of ends: the same on Temporal as on SQLite, for the runs that a process executes."""

import asyncio
import datetime as dt
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client as TemporalClient

from durably import Client, Context, Embedded, EngineSettings, Event, TemporalEngine, TriggerEvent
from durably.comm import CommHandler
from durably.engine.api.metrics import CATALOGUE, Metric
from durably.engine.core.inputs import EndRun
from durably.engine.model.runs import Run
from durably.engine.temporal.ids import run_workflow_id
from durably.engine.temporal.observers import RunChanges

from ...temporal.dev_server import DevServer
from ...waiting import async_eventually

QUICK: dict[str, Any] = {
    "backoff": lambda attempt, jitter: dt.timedelta(milliseconds=20),
    "close_grace": dt.timedelta(milliseconds=100),
}
COUNTED_BY_FUNCTION = ("runs_started", "runs_ended", "steps_ended", "attempts")
HISTOGRAMS = ("run_duration_seconds", "step_duration_seconds")

Handle = Embedded | TemporalEngine
MakeEngine = Callable[..., Handle]


@pytest.fixture(params=["sqlite", "temporal"])
def make_engine(request: pytest.FixtureRequest, server: DevServer, tmp_path: Path) -> MakeEngine:
    def make(**settings: Any) -> Handle:
        wanted = EngineSettings(**QUICK, **settings)
        if request.param == "sqlite":
            return Embedded(tmp_path / "durably.db", settings=wanted)
        return TemporalEngine(server.address, settings=wanted)

    return make


class Shop:
    """An app with a unique id, because tests share a server."""

    def __init__(self, engine: Handle, app_id: str | None = None) -> None:
        self.engine = engine
        self.id = app_id or f"shop{uuid.uuid4().hex[:8]}"
        self.client = Client(app_id=self.id, engine=engine, is_production=False)

        @self.client.create_function(fn_id="order", trigger=self._on("order"), retries=1)
        async def order(ctx: Context) -> str:
            async def charge() -> None:
                if ctx.attempt == 0:
                    raise ValueError

            await ctx.step.run("charge", charge)
            await ctx.step.sleep("pause", "20ms")
            return await ctx.step.run("ship", lambda: "shipped")

        @self.client.create_function(fn_id="pay", trigger=self._on("pay"), retries=0)
        async def pay(ctx: Context) -> None:
            raise ValueError("declined")

        @self.client.create_function(fn_id="nap", trigger=self._on("nap"), retries=0)
        async def nap(ctx: Context) -> None:
            await ctx.step.run("yawn", lambda: None)
            await ctx.step.wait_for_event("alarm", event=f"{self.id}/alarm", timeout="1h")

        CommHandler(client=self.client, framework="test", functions=[order, pay, nap])

    def _on(self, name: str) -> TriggerEvent:
        return TriggerEvent(event=f"{self.id}/{name}")

    async def start(self, name: str) -> str:
        """Send an event. Returns the id of its run. Lists on Temporal lag."""
        [event_id] = await self.client.send(Event(name=f"{self.id}/{name}"))
        runs = await async_eventually(lambda: self.engine.event_runs(event_id), f"the run of {name} is listed")
        return runs[0].id

    async def run(self, name: str) -> Run:
        return await self.engine.wait_for_run(await self.start(name))

    async def read(self) -> dict[str, Metric]:
        metrics = await asyncio.to_thread(self.engine.scrape)
        assert metrics is not None
        return {metric.name: metric for metric in metrics}

    async def counts(self) -> dict[str, float]:
        """Counts that are not zero, by metric and labels without the app's id."""
        metrics = await self.read()
        values = {
            ",".join((name, *sample.labels)): sample.value
            for name in (*COUNTED_BY_FUNCTION, "events_received", "events_unmatched")
            for sample in metrics[name].samples
        }
        values |= {
            ",".join((name, *sample.labels)): sum(sample.counts)
            for name in HISTOGRAMS
            for sample in metrics[name].samples
        }
        return {name.replace(f"{self.id}-", ""): value for name, value in values.items() if value}

    async def wait_until_counted(self, name: str) -> None:
        await async_eventually(self.counts, f"{name} is counted", is_right=lambda counts: name in counts)


@asynccontextmanager
async def opened(engine: Handle) -> AsyncIterator[Shop]:
    shop = Shop(engine)
    async with engine.running():
        yield shop


async def test_both_engines_count_the_same(make_engine: MakeEngine) -> None:
    async with opened(make_engine()) as shop:
        assert (await shop.run("order")).status == "Completed"
        assert (await shop.run("pay")).status == "Failed"
        napping = await shop.start("nap")
        await shop.wait_until_counted("steps_ended,nap,completed")
        assert await shop.engine.cancel_run(napping)
        await shop.client.send(Event(name=f"{shop.id}/unknown"))
        await shop.wait_until_counted("runs_ended,nap,cancelled")
        assert await shop.counts() == {
            "runs_started,order": 1,
            "runs_started,pay": 1,
            "runs_started,nap": 1,
            "runs_ended,order,completed": 1,
            "runs_ended,pay,failed": 1,
            "runs_ended,nap,cancelled": 1,
            "steps_ended,order,completed": 3,
            "steps_ended,nap,completed": 1,
            "attempts,order,completed": 3,
            "attempts,order,failed": 1,
            "attempts,pay,failed": 1,
            "attempts,nap,completed": 1,
            "events_received": 4,
            "events_unmatched": 1,
            "run_duration_seconds,order": 1,
            "run_duration_seconds,pay": 1,
            "run_duration_seconds,nap": 1,
            "step_duration_seconds,order": 2,
            "step_duration_seconds,nap": 1,
        }


async def test_calls_are_counted_with_their_delay_and_time(make_engine: MakeEngine) -> None:
    async with opened(make_engine()) as shop:
        await shop.run("pay")
        metrics = await shop.read()
        labels = (f"{shop.id}-pay",)
        [calls] = [each.value for each in metrics["calls"].samples if each.labels == (*labels, "failed")]
        assert calls == 1
        for name in ("call_duration_seconds", "queue_delay_seconds"):
            [found] = [each for each in metrics[name].samples if each.labels == labels]
            assert sum(found.counts) == 1
            assert 0 <= found.value < 60
        in_flight = {each.labels: each.value for each in metrics["calls_in_flight"].samples}
        assert in_flight[labels] == 0


async def test_every_metric_that_the_catalogue_promises_on_temporal_is_read(server: DevServer) -> None:
    async with opened(TemporalEngine(server.address)) as shop:
        names = sorted(await shop.read())
    assert names == sorted(family.name for family in CATALOGUE if not family.is_sqlite_only)


async def test_a_replay_counts_nothing_again(server: DevServer) -> None:
    """The second engine replays what the first has executed."""
    async with opened(TemporalEngine(server.address, settings=EngineSettings(**QUICK))) as first:
        run_id = await first.start("nap")
        await first.wait_until_counted("steps_ended,nap,completed")
        before = await first.counts()
    second = Shop(TemporalEngine(server.address, settings=EngineSettings(**QUICK)), first.id)
    async with second.engine.running():
        async with asyncio.timeout(60):
            # The first engine may have ended before the run waited.
            while "runs_ended,nap,completed" not in await second.counts():
                await second.client.send(Event(name=f"{first.id}/alarm"))
                await asyncio.sleep(0.2)
        assert (await second.engine.wait_for_run(run_id)).status == "Completed"
        after = await second.counts()
    assert before["runs_started,nap"] == before["steps_ended,nap,completed"] == 1
    assert not any(name.startswith("runs_ended,nap") for name in before)
    assert "runs_started,nap" not in after
    assert after["steps_ended,nap,completed"] == after["runs_ended,nap,completed"] == 1


async def test_the_end_of_each_run_is_logged(make_engine: MakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "durably.runs")
    async with opened(make_engine(log_runs=True)) as shop:
        completed, failed = await shop.run("order"), await shop.run("pay")
    lines: list[Any] = [record for record in caplog.records if record.name == "durably.runs"]
    assert [(line.levelname, line.run_id, line.outcome, line.event_id) for line in lines] == [
        ("INFO", completed.id, "completed", completed.event_id),
        ("ERROR", failed.id, "failed", failed.event_id),
    ]
    assert lines[1].getMessage().endswith(": ValueError: declined")


async def test_two_engines_of_a_process_with_one_app_count_separately(server: DevServer) -> None:
    """The connections differ by their namespaces."""
    client = await TemporalClient.connect(server.address)
    namespace = f"billing{uuid.uuid4().hex[:8]}"
    request = RegisterNamespaceRequest(namespace=namespace, workflow_execution_retention_period=Duration(seconds=86400))
    await client.workflow_service.register_namespace(request)
    first = Shop(TemporalEngine(server.address))
    second = Shop(TemporalEngine(server.address, namespace), first.id)
    async with first.engine.running():
        async with second.engine.running():
            await first.run("pay")
            await first.wait_until_counted("runs_ended,pay,failed")
            assert "runs_ended,pay,failed" not in await second.counts()
        await first.run("order")
        await first.wait_until_counted("runs_ended,order,completed")


async def test_an_end_that_the_server_refuses_is_not_counted_however_late_the_next_one_is(
    server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is cancelled during the task that completes it. A busy process executes it again much later."""
    is_ending, was_cancelled, note_end = threading.Event(), threading.Event(), RunChanges.note_end

    def stall(self: RunChanges, end: EndRun) -> None:
        if is_ending.is_set():
            time.sleep(1)
        note_end(self, end)
        is_ending.set()
        was_cancelled.wait(1.5)

    monkeypatch.setattr(RunChanges, "note_end", stall)
    async with opened(TemporalEngine(server.address, settings=EngineSettings(**QUICK))) as shop:
        run_id = await shop.start("pay")
        await asyncio.to_thread(is_ending.wait, 60)
        client = await TemporalClient.connect(server.address)
        await client.get_workflow_handle(run_workflow_id(run_id)).cancel()
        was_cancelled.set()
        status = (await shop.engine.wait_for_run(run_id)).status.value.lower()
        await shop.wait_until_counted(f"runs_ended,pay,{status}")
        ended = {name: count for name, count in (await shop.counts()).items() if name.startswith("runs_ended")}
    assert ended == {f"runs_ended,pay,{status}": 1}
    assert status == "cancelled"
