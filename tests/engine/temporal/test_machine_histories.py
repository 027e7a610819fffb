"""The machine's random histories, through workflows and activities on the server that skips time.

The app, the router and the other server of ``fetch`` are fakes. The machine alone (``World``) is the reference.
"""

import os
import random
import uuid
from contextlib import AsyncExitStack
from typing import Any

import msgspec
from temporalio import activity
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from durably.engine.core.answers import Answer, AttemptFailed, Unreached
from durably.engine.core.call_body import CallData
from durably.engine.core.inputs import WaitResolved
from durably.engine.core.run_state import RunStatus
from durably.engine.scheduling.events import make_id
from durably.engine.scheduling.requests.step_requests import Outbound
from durably.engine.temporal.call_slots import CallSlots
from durably.engine.temporal.converter import DATA_CONVERTER
from durably.engine.temporal.ids import WORKFLOWS_QUEUE, run_workflow_id
from durably.engine.temporal.messages import (
    CallInput,
    CheckpointInput,
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
from durably.engine.temporal.runs import activities
from durably.engine.temporal.runs.activities import CallActivities
from durably.engine.temporal.runs.run_workflow import RunWorkflow
from durably.engine.temporal.runs.step_requests import REQUEST, StepRequests
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Op, Opcode
from durably.temporal.binaries import find_program

from ..core.fake_app import FakeApp, Node, Step, leaves
from ..core.test_machine_histories import MAX_ATTEMPTS, World, build, run_to_end

CALLS = "durably/app/random"
LOST = ErrorData(name="CallLostError", message="lost")
SEEDS = int(os.environ.get("MACHINE_SEEDS", "5"))
LEAVES = ("step", "step", "step", "flaky", "sleep", "event", "invoke", "fetch")


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

    def __init__(self, client: Client, nodes: tuple[Node, ...], chance: random.Random, misfortunes: int) -> None:
        self.client = client
        self.app = FakeApp(nodes)
        self.chance = chance
        self.misfortunes = misfortunes
        self.lost = 0

    async def call(self, call: CallInput, data: CallData) -> Answer:
        memos = dict(data.memos)
        if self.misfortunes and self.chance.random() < 0.3:
            self.misfortunes -= 1
            return Unreached(LOST) if self.chance.random() < 0.5 else self._lose()
        answer = self.app.run(call.call.step_id, memos, call.disable_immediate)
        finished = [op for op in getattr(answer, "ops", ()) if op.op == Opcode.STEP_RUN]
        if finished and self.chance.random() < 0.3:
            await self._checkpoint(call, finished)
        return answer

    def _lose(self) -> Answer:
        self.lost += 1
        return AttemptFailed(LOST, retry_at=0)

    async def _checkpoint(self, call: CallInput, steps: list[Op]) -> None:
        handle = self.client.get_workflow_handle(run_workflow_id(call.run_id))
        await handle.execute_update("checkpoint", CheckpointInput(call.call.generation, steps))

    @activity.defn(name=activities.WAIT_FOR_EVENT)
    async def wait_for_event(self, wait: WaitRecord) -> None:
        if self.chance.random() < 0.7:
            handle = self.client.get_workflow_handle(run_workflow_id(wait.run_id))
            await handle.signal("resolve", WaitResolved(wait.step_id, b'{"data":2}'))

    @activity.defn(name=activities.RESOLVE)
    async def resolve(self, invocation: InvokeInput) -> ResolvedInvocation:
        if self.chance.random() < 0.5:
            return ResolvedInvocation(error=LOST)
        handle = self.client.get_workflow_handle(run_workflow_id(invocation.run_id))
        await handle.signal("resolve", WaitResolved(invocation.step_id, b'{"data":3}'))
        return ResolvedInvocation()

    @activity.defn(name=activities.LEAVE)
    async def leave(self, left: LeaveInput) -> None:
        """Nothing is registered."""

    @activity.defn(name=activities.SEND)
    async def send(self, events: InternalEvents) -> None:
        """Nothing listens."""

    @activity.defn(name=REQUEST)
    async def request(self, request: RequestInput) -> RequestResult:
        if self.misfortunes and self.chance.random() < 0.3:
            self.misfortunes -= 1
            return RequestResult(msgspec.Raw(b'{"error":{}}'), failed=True, is_retriable=True)
        return RequestResult(msgspec.Raw(b'{"data":1}'))


async def _run(environment: WorkflowEnvironment, world: FakeWorld) -> Any:
    """The result of the run's workflow."""
    requests = StepRequests(f"durably/process/{uuid.uuid4()}", Outbound())
    calls = CallActivities(environment.client, world.call, requests, CallSlots(100))
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
            )
            await stack.enter_async_context(worker)
        return await environment.client.execute_workflow(
            "durably.Run", run, id=run_workflow_id(run_id), task_queue=WORKFLOWS_QUEUE, result_type=str
        )


async def test_random_runs_end_as_by_the_machine_alone() -> None:
    async with await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=str(find_program("temporal-test-server")), data_converter=DATA_CONVERTER
    ) as environment:
        for seed in range(SEEDS):
            await _check(environment, seed)


async def _check(environment: WorkflowEnvironment, seed: int) -> None:
    chance = random.Random(seed)
    nodes = build(random_shape(chance, 2))
    reference = World(nodes, random.Random(seed), misfortunes=0)
    run_to_end(reference)
    assert reference.ended is not None
    assert reference.ended.status is RunStatus.COMPLETED
    world = FakeWorld(environment.client, nodes, chance, misfortunes=2)
    assert msgspec.json.encode(await _run(environment, world)) == reference.ended.output, f"seed {seed}"
    for leaf in leaves(nodes):
        if isinstance(leaf, Step):
            executions = world.app.executions.get(leaf.id, 0)
            assert executions <= leaf.failures + 1, f"seed {seed}: {leaf.id} was executed again"
