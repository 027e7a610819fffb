"""The machine's random histories, through workflows and activities on the server that skips time.

The app, the router and the other server of ``fetch`` are fakes. Calls do not reach the app, and workers are lost. Each
run ends as on the SQLite engine (``sqlite_reference.py``).
"""

import asyncio
import datetime as dt
import os
import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.common import RetryPolicy
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from durably.engine.core.calls import Answer, CallData, Unreached
from durably.engine.core.inputs import WaitResolved
from durably.engine.core.run_state import RunStatus
from durably.engine.model.events import make_id
from durably.engine.model.requests import OutboundClient
from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.ids import WORKFLOWS_QUEUE, run_workflow_id
from durably.engine.temporal.messages import (
    CallInput,
    CheckpointInput,
    ContentRequest,
    EventRecord,
    InternalEvents,
    InvokeInput,
    LeaveInput,
    RequestInput,
    RequestResult,
    ResolvedInvocation,
    RunInput,
    RunPolicy,
    WaitRecord,
)
from durably.engine.temporal.routing.router import RESOLVE, SEND
from durably.engine.temporal.routing.waits import LEAVE, WAIT_FOR_EVENT
from durably.engine.temporal.runs import activities, calls
from durably.engine.temporal.runs.activities import REQUEST, CallActivities, StepRequests
from durably.engine.temporal.runs.call_slots import CallSlots
from durably.engine.temporal.runs.run_workflow import RunWorkflow
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Op, Opcode
from durably.temporal.errors import find_program

from ...core.fake_app import FakeApp, Node, Parallel, Step, leaves
from ...core.test_machine_histories import build
from ..sqlite_reference import (
    CHILD_FAILED,
    MAX_ATTEMPTS,
    Ending,
    arrives,
    child_fails,
    end_on_sqlite,
    other_server,
    outline,
    output_of,
)

CALLS = "durably/app/random"
AWAY = ErrorData(name="ConnectError", message="connection refused")
SEEDS = range(*map(int, os.environ.get("MACHINE_SEEDS", "0:5").split(":")))
LEAVES = ("step", "step", "step", "flaky", "doomed", "sleep", "event", "invoke", "fetch")
ONCE = RetryPolicy(maximum_attempts=1)
LEASE = dt.timedelta(milliseconds=500)
"""The heartbeat timeout of calls. A lost worker sends none."""


def random_shape(chance: random.Random, depth: int) -> tuple[object, ...]:
    parts: list[object] = []
    for _ in range(chance.randint(1, 3)):
        if depth and chance.random() < 0.4:
            branches = tuple(random_shape(chance, depth - 1) for _ in range(chance.randint(2, 3)))
            parts.append((chance.choice(["wait", "race", "first"]), branches))
        else:
            parts.append(chance.choice(LEAVES))
    return tuple(parts)


class FakeWorld:
    """One run's app, and the parts of the engine around the run's workflow."""

    def __init__(self, client: Client, app: FakeApp, seed: int, misfortunes: int) -> None:
        self.client = client
        self.app = app
        self.seed = seed
        self.chance = random.Random(seed)
        self.misfortunes = misfortunes
        self.loses_workers = seed % 2 == 1
        """If false, calls do not reach the app."""
        self.repeated: Counter[str] = Counter()
        """Executions by calls whose worker was lost."""
        self.accepted, self.refused = 0, 0
        """Checkpoints of such calls."""
        self._lost: set[bytes] = set()
        self._calls: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        """The next call for a step."""

    async def call(self, call: CallInput, data: CallData) -> Answer:
        step_id = call.call.step_id
        self._calls.pop(step_id, asyncio.Event()).set()
        misfortune = self._draw()
        if misfortune and not self.loses_workers:
            return Unreached(AWAY)
        before = Counter(self.app.executions)
        answer = self.app.run(step_id, dict(data.memos), call.disable_immediate)
        finished = [op for op in getattr(answer, "ops", ()) if op.op == Opcode.STEP_RUN]
        if misfortune:
            self.repeated += Counter(self.app.executions) - before
            await self._lose(call, finished)
        if finished and self.chance.random() < 0.3:
            await self._checkpoint(call, finished)
        return answer

    def _draw(self) -> bool:
        if self.misfortunes and self.chance.random() < 0.3:
            self.misfortunes -= 1
            return True
        return False

    async def _lose(self, call: CallInput, finished: list[Op]) -> NoReturn:
        """The worker is lost until another call is made for the step. Then it continues, too late."""
        self._lost.add(activity.info().task_token)
        await self._calls[call.call.step_id].wait()
        try:
            await self._checkpoint(call, finished)
            self.accepted += 1
        except WorkflowUpdateFailedError:
            self.refused += 1
        await asyncio.Event().wait()
        raise AssertionError

    async def send_heartbeats(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            if activity.info().task_token not in self._lost:
                activity.heartbeat()

    async def _checkpoint(self, call: CallInput, steps: list[Op]) -> None:
        handle = self.client.get_workflow_handle(run_workflow_id(call.run_id))
        await handle.execute_update("checkpoint", CheckpointInput(call.call.generation, steps))

    @activity.defn(name=WAIT_FOR_EVENT)
    async def wait_for_event(self, wait: WaitRecord) -> None:
        if arrives(self.seed, wait.event):
            handle = self.client.get_workflow_handle(run_workflow_id(wait.run_id))
            await handle.signal("resolve", WaitResolved(wait.step_id, b'{"data":{}}'))

    @activity.defn(name=RESOLVE)
    async def resolve(self, invocation: InvokeInput) -> ResolvedInvocation:
        if child_fails(self.seed, invocation.payload["data"]["step"]):
            return ResolvedInvocation(error=CHILD_FAILED)
        handle = self.client.get_workflow_handle(run_workflow_id(invocation.run_id))
        await handle.signal("resolve", WaitResolved(invocation.step_id, b'{"data":3}'))
        return ResolvedInvocation()

    @activity.defn(name=LEAVE)
    async def leave(self, left: LeaveInput) -> None:
        """Do nothing, because nothing is registered."""

    @activity.defn(name=SEND)
    async def send(self, events: InternalEvents) -> None:
        """Do nothing, because nothing waits."""

    @activity.defn(name=REQUEST)
    async def request(self, request: RequestInput) -> RequestResult:
        if self._draw():
            return RequestResult(msgspec.Raw(b'{"error":{}}'), failed=True, is_retriable=True)
        return RequestResult(msgspec.Raw(b'{"data":{}}'))


async def _run(environment: WorkflowEnvironment, world: FakeWorld, *, caches: bool) -> Ending:
    """The run's end. A worker that does not cache workflows executes each one from the start, as after a loss."""
    requests = StepRequests(f"durably/process/{uuid.uuid4()}", OutboundClient())
    calls = CallActivities(environment.client, world.call, requests, CallSlots(100), asyncio.Semaphore(100))
    event = msgspec.Raw(b'{"name":"go","data":{},"id":"e","ts":1}')
    run_id = make_id(1, random.randbytes)
    run = RunInput(
        run_id=run_id,
        function_id="app-random",
        app_id="app",
        max_attempts=MAX_ATTEMPTS,
        calls_queue=CALLS,
        events=(EventRecord(id="e", name="go", body=event),),
        policy=RunPolicy(retry_delays=((1000, 0),)),
    )
    routing = [world.wait_for_event, world.resolve, world.leave, world.send]
    async with AsyncExitStack() as stack:
        for queue, workflows, served in (
            (WORKFLOWS_QUEUE, [RunWorkflow], routing),
            (CALLS, [], calls.activities),
            (requests.queue, [], [world.request]),
        ):
            worker = Worker(
                environment.client,
                task_queue=queue,
                workflows=workflows,
                activities=served,
                workflow_runner=UnsandboxedWorkflowRunner(),
                max_cached_workflows=1000 if caches else 0,
            )
            await stack.enter_async_context(worker)
        handle = await environment.client.start_workflow(
            "durably.Run", run, id=run_workflow_id(run_id), task_queue=WORKFLOWS_QUEUE, result_type=Any
        )
        status, output = await _end_of(handle)
        page = await activities.read_content(handle, ContentRequest(0))
        return Ending(status, output, {memo.step_id: outline(bytes(memo.memo)) for memo in page.memos})


async def _end_of(handle: WorkflowHandle[Any, Any]) -> tuple[RunStatus, object]:
    try:
        return RunStatus.COMPLETED, await handle.result()
    except WorkflowFailureError as failure:
        return RunStatus.FAILED, getattr(failure.cause, "type", None)


async def test_random_runs_end_as_on_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_HEARTBEAT_TIMEOUT", LEASE)
    policy = calls._CALL_RETRIES
    async with (
        other_server() as url,
        await WorkflowEnvironment.start_time_skipping(
            test_server_existing_path=str(find_program("temporal-test-server")), data_converter=DATA_CONVERTER
        ) as environment,
    ):
        worlds = []
        for seed in SEEDS:
            nodes = build(random_shape(random.Random(seed), 2))
            apps = [FakeApp(nodes, output=_output(nodes, seed), url=url) for _ in range(2)]
            world = FakeWorld(environment.client, apps[0], seed, misfortunes=3)
            monkeypatch.setattr(activities, "_send", world.send_heartbeats)
            # This server would repeat the call of a lost worker, although the policy excludes that.
            monkeypatch.setattr(calls, "_CALL_RETRIES", ONCE if world.loses_workers else policy)
            found = await _run(environment, world, caches=seed % 4 < 2)
            _check(found, await end_on_sqlite(tmp_path / f"{seed}.db", apps[1], seed), world, seed)
            worlds.append(world)
        assert sum(world.refused for world in worlds) > 0, "no worker was lost"


def _output(nodes: tuple[Node, ...], seed: int) -> Callable[[dict[str, bytes]], Answer]:
    """The function's answer. Which memos exist is random if only the first branch counts."""
    return lambda memos: output_of(seed, memos.values() if _is_settled(nodes) else [])


def _is_settled(nodes: Sequence[Node]) -> bool:
    """Whether all steps are executed, regardless of their speed."""
    parallel = [node for node in nodes if isinstance(node, Parallel)]
    return not any(node.first for node in parallel) and all(
        _is_settled(each) for node in parallel for each in node.branches
    )


def _check(found: Ending, wanted: Ending, world: FakeWorld, seed: int) -> None:
    assert (found.status, found.output) == (wanted.status, wanted.output), f"seed {seed}"
    if _is_settled(world.app.nodes):
        assert found.memos == wanted.memos, f"seed {seed}"
    in_both = found.memos.keys() & wanted.memos.keys()
    assert {each: found.memos[each] for each in in_both} == {each: wanted.memos[each] for each in in_both}, (
        f"seed {seed}"
    )
    assert not world.accepted, f"seed {seed}: a checkpoint of a lost worker was accepted"
    for leaf in leaves(world.app.nodes):
        if isinstance(leaf, Step):
            executions = world.app.executions.get(leaf.id, 0) - world.repeated[leaf.id]
            assert executions <= min(leaf.failures + 1, MAX_ATTEMPTS), f"seed {seed}: {leaf.id} was executed again"
