"""Random overlaps of sends, registrations and syncs lose no acknowledged work, even if some are cut off."""

import asyncio
import datetime as dt
import itertools
import math
import random
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import msgspec
import pytest
from temporalio import workflow
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Worker

from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.apps import CronActivities
from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.ids import (
    WORKFLOWS_QUEUE,
    app_queue,
    event_workflow_id,
    make_run_id,
    run_workflow_id,
)
from durably.engine.temporal.messages import Delivery, EventRecord, RunInput, WaitRecord
from durably.engine.temporal.routing import router
from durably.engine.temporal.routing.workflows import wait_key
from durably.engine.temporal.runs.activities import LocalActivities
from durably.engine.temporal.runs.run_workflow import RunWorkflow
from durably.engine.temporal.workers import WORKFLOWS

from ....temporal.dev_server import DevServer
from ..routed_app import PATIENCE, RoutedApp

SAME = "event.data.n == async.data.n"
VALUES = range(3)
FUNCTIONS = ("f", "g", "h")
_event_ids = itertools.count()


@workflow.defn(name="durably.Run", sandboxed=False)
class RecordingRun:
    """A run that ends with its first event, or immediately if it was triggered."""

    def __init__(self) -> None:
        self._got: str | None = None

    @workflow.run
    async def run(self, run: RunInput) -> str | None:
        if run.function_id != "waiter":
            return None
        await workflow.wait_condition(lambda: self._got is not None)
        return self._got

    @workflow.signal(name="deliver")
    def deliver(self, delivery: Delivery) -> None:
        self._got = delivery.event.id


class Span:
    """Start and acknowledgement of an operation, in the order of a common counter."""

    _clock = itertools.count()

    def __init__(self) -> None:
        self.began = next(self._clock)
        self.acknowledged = math.inf

    def acknowledge(self) -> None:
        self.acknowledged = next(self._clock)

    def is_before(self, other: "Span") -> bool:
        return self.acknowledged < other.began


class World:
    def __init__(self, app: RoutedApp, chance: random.Random) -> None:
        self.app, self.chance = app, chance
        self.router = app.engine._router
        self.sends: list[tuple[Span, EventRecord, int]] = []
        self.waits: list[tuple[Span, WaitRecord, int]] = []
        self.syncs: list[tuple[Span, set[str]]] = []
        self._numbers = itertools.count()

    def operation(self) -> Coroutine[Any, Any, None]:
        kind = self.chance.random()
        return self.send() if kind < 0.5 else self.register() if kind < 0.85 else self.sync()

    async def send(self) -> None:
        span, value, number = Span(), self.chance.choice(VALUES), next(_event_ids)
        body = {"name": self.app.event("x"), "data": {"n": value}, "id": str(number), "ts": 1, "user": {}}
        record = EventRecord(
            id=f"{number:026}", name=self.app.event("x"), body=msgspec.Raw(msgspec.json.encode(body)), at=1 + number
        )
        self.sends.append((span, record, value))
        await self.router.route(record)
        span.acknowledge()

    async def register(self) -> None:
        span, value = Span(), self.chance.choice(VALUES)
        run_id = f"{self.app.app_id}-{next(self._numbers)}"
        key = wait_key(self.chance.choice([SAME, f"{SAME} && true"]), {"data": {"n": value}})
        wait = WaitRecord(
            run_id=run_id,
            step_id="s",
            event=self.app.event("x"),
            until=None,
            path=key.path,
            value=key.value,
            is_exact=key.is_exact,
        )
        self.waits.append((span, wait, value))
        await self.app.client.start_workflow(
            "durably.Run",
            RunInput(run_id=run_id, function_id="waiter", app_id="app", max_attempts=1, calls_queue="none", events=()),
            id=run_workflow_id(run_id),
            task_queue=app_queue(self.app.app_id),
        )
        await self.router.waits.register(wait)
        span.acknowledge()

    async def sync(self) -> None:
        names = {name for name in FUNCTIONS if self.chance.random() < 0.6}
        span = Span()
        self.syncs.append((span, names))
        self.app.functions.clear()
        for name in sorted(names):
            self.app.function(name, event=self.app.event("x"))(lambda steps: None)
        await self.app.sync()
        span.acknowledge()

    # Conditions at the end.

    async def check(self) -> None:
        for span, event, _ in self.sends:
            await self._check_runs(span, event)
        for span, wait, value in self.waits:
            await self._check_wait(span, wait, value)

    async def _check_runs(self, span: Span, event: EventRecord) -> None:
        fan_out = self.app.client.get_workflow_handle(event_workflow_id(event.id))
        started = {name for name in FUNCTIONS if await self._exists(event, name)}
        assert not started & self._surely(span, is_active=False)
        if span.acknowledged < math.inf:
            assert self._surely(span, is_active=True) <= started, event.id
        elif await self._has_fan_out(event):
            # It was cut off, and its workflow finishes it.
            span.acknowledged = next(Span._clock)
            await fan_out.result()
            started = {name for name in FUNCTIONS if await self._exists(event, name)}
            assert self._surely(span, is_active=True) <= started, event.id

    async def _has_fan_out(self, event: EventRecord) -> bool:
        try:
            await self.app.client.get_workflow_handle(event_workflow_id(event.id)).describe()
        except RPCError:
            return False
        return True

    async def _exists(self, event: EventRecord, name: str) -> bool:
        run_id = make_run_id(event.at, event.id, self.app.id_of(name))
        try:
            await self.app.client.get_workflow_handle(run_workflow_id(run_id)).describe()
        except RPCError:
            return False
        return True

    def _surely(self, span: Span, *, is_active: bool) -> set[str]:
        """The functions that are active, or inactive, during the whole send."""
        before = [(sync, names) for sync, names in self.syncs if sync.is_before(span)]
        if not before:
            return set()
        last, names = max(before, key=lambda each: each[0].acknowledged)
        overlapping = [
            other
            for sync, other in self.syncs
            if sync is not last and not sync.is_before(last) and not span.is_before(sync)
        ]
        return {
            name
            for name in FUNCTIONS
            if (name in names) is is_active and all((name in other) is is_active for other in overlapping)
        }

    async def _check_wait(self, span: Span, wait: WaitRecord, value: int) -> None:
        later = [event.id for sent, event, sent_value in self.sends if sent_value == value and span.is_before(sent)]
        acknowledged = [
            event.id
            for sent, event, sent_value in self.sends
            if sent_value == value and span.is_before(sent) and sent.acknowledged < math.inf
        ]
        possible = [event.id for _, event, sent_value in self.sends if sent_value == value]
        handle = self.app.client.get_workflow_handle(run_workflow_id(wait.run_id))
        if acknowledged:
            async with asyncio.timeout(PATIENCE):
                assert await handle.result() in possible, (wait, later)


@pytest.fixture
async def app(server: DevServer) -> AsyncIterator[RoutedApp]:
    client = await Client.connect(server.address, data_converter=DATA_CONVERTER)
    app = RoutedApp(client, EngineSettings())
    await app.engine.prepare()
    routing = LocalActivities(client, app.engine._router, app.engine._apps)
    worker = Worker(
        client,
        task_queue=WORKFLOWS_QUEUE,
        workflows=[each for each in WORKFLOWS if each is not RunWorkflow],
        activities=[
            *routing.activities,
            *app.engine._router.buckets.activities,
            CronActivities(app.engine._router).fire,
        ],
    )
    async with worker, Worker(client, task_queue=app_queue(app.app_id), workflows=[RecordingRun]):
        yield app


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 20))])
async def test_nothing_acknowledged_is_lost(app: RoutedApp, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(router, "SENDERS_TIME", dt.timedelta(seconds=1))
    chance = random.Random(seed)
    world = World(app, chance)
    await world.sync()
    under_way, cut_off = set[asyncio.Task[None]](), set[asyncio.Task[None]]()
    for _ in range(40):
        under_way.add(asyncio.create_task(world.operation()))
        if len(under_way) >= 4:
            if chance.random() < 0.15:
                cut_off.add(task := chance.choice(sorted(under_way, key=id)))
                task.cancel()
            done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            assert not [task.exception() for task in done - cut_off if task.exception()]
        for _ in range(chance.randrange(20)):
            await asyncio.sleep(0)
    await asyncio.gather(*(under_way - cut_off))
    await asyncio.gather(*cut_off, return_exceptions=True)
    await world.check()
