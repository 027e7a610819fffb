"""An engine in memory, played by the tests: it calls an app's handler with real JSON bodies and keeps what comes back.

It knows the protocol only: it applies ops to memos and to the stack, calls for planned steps, repeats failed attempts
and asks for discovery as each step's parallel mode says. Time does not pass: whatever is due happens when ``pick``
chooses it, so a test decides in which order steps end.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from durably import Client, Function, TriggerEvent
from durably.comm import CommHandler, CommRequest, CommResponse
from durably.io.http_client import IO, AsyncIO
from durably.protocol.call import CheckpointRequest

from .. import wire

DISCOVER = "step"
NULL = object()
"""A reply of the engine's that is the memo ``null`` itself: the end of a sleep, a wait that timed out."""

Pick = Callable[[Sequence["Job"]], int]
"""The index of the next job among those that are due."""


def first(jobs: Sequence["Job"]) -> int:
    return 0


def last(jobs: Sequence["Job"]) -> int:
    return len(jobs) - 1


def named(*names: str) -> Pick:
    """Steps end in the order of the names, and what is not named last."""
    return lambda jobs: min(range(len(jobs)), key=lambda index: _place(jobs[index], names))


def _place(job: "Job", names: tuple[str, ...]) -> int:
    if job.op is None:
        return -1  # discovery comes first
    return names.index(job.name) if job.name in names else len(names)


class Answer(wire.Answer):
    """An app's answer to a call."""

    @property
    def ops(self) -> list[dict[str, Any]]:
        assert self.status == 206, (self.status, self.body)
        return self.json  # type: ignore[no-any-return]

    @property
    def no_retry(self) -> bool:
        return self.headers.get("x-inngest-no-retry") == "true"

    def found(self) -> list[tuple[str, str]]:
        """Opcode and the user's id of each op."""
        return [(op["op"], op["userland"]["id"]) for op in self.ops]


@dataclass
class Job:
    """Something that is due: a call (``target`` of a planned step, or ``None`` to discover), or an op's reply."""

    target: str | None = None
    op: dict[str, Any] | None = None
    attempt: int = 0

    @property
    def is_call(self) -> bool:
        return self.op is None or self.op["op"] == "StepPlanned"

    @property
    def is_race(self) -> bool:
        return self.op is not None and (self.op.get("opts") or {}).get("parallelMode") == "race"

    @property
    def name(self) -> str:
        """The user's id of the step, empty for a discovery."""
        return self.op["userland"]["id"] if self.op else ""


@dataclass
class Run:
    """A run's state, and what has happened in it."""

    event: dict[str, Any]
    run_id: str = "01RUN"
    memos: dict[str, Any] = field(default_factory=dict)
    stack: list[str] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=lambda: [Job()])
    found: frozenset[str] = frozenset()
    """Steps that the last discovery found; the others under way lost a race, and are not waited for."""
    disable_immediate: bool = False
    status: str = "Running"
    output: Any = None
    answers: list[Answer] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    retry_after: list[str] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.status != "Running"

    def state_at(self, length: int) -> "Run":
        """The run as it was when ``length`` steps had ended."""
        stack = self.stack[:length]
        return Run(self.event, self.run_id, {step: self.memos[step] for step in stack}, stack)


@dataclass
class FakeEngine:
    """Drives runs of ``functions``.

    ``replies`` gives, by the step's id as the user wrote it, what the engine memoises for waits, invokes, fetches
    and inferences: a memo as it stands on the wire, ``NULL``, or a function of the op that returns one. ``blocking``
    calls the app as a sync server would. ``together``: calls may execute the steps that they find at once, as long as
    no other step is due, and send checkpoints if the function does.
    """

    client: Client
    functions: Sequence[Function[Any]]
    replies: Mapping[str, Any] = field(default_factory=dict)
    blocking: bool = False
    max_attempts: int = 3
    together: bool = False

    def __post_init__(self) -> None:
        self.handler = CommHandler(client=self.client, framework="test", functions=self.functions)

    async def run(
        self, function: Function[Any] | None = None, data: Mapping[str, Any] | None = None, *, pick: Pick = first
    ) -> Run:
        """A run of ``function`` (the first, if none is given) from its event to its end."""
        run = Run({"name": "test/event", "data": dict(data or {}), "id": "01EVENT", "ts": 1_700_000_000_000})
        await self.drive(run, function, pick=pick)
        return run

    async def drive(
        self, run: Run, function: Function[Any] | None = None, *, pick: Pick = first, steps: int = 1000
    ) -> None:
        """Carry a run on to its end, or by at most ``steps`` jobs."""
        function_id = (function or self.functions[0]).id
        for _ in range(steps):
            if run.is_over or not run.jobs:
                break
            job = run.jobs.pop(pick(run.jobs))
            if job.is_call:
                await self._make_call(run, function_id, job)
            else:
                self._end_step(run, job, self._reply(job))
        assert run.is_over or run.jobs, "the run waits, and nothing is due"

    async def _make_call(self, run: Run, function_id: str, job: Job) -> None:
        context: dict[str, Any] = {}
        if self.together and job.target is None and not job.attempt and not any(due.op for due in run.jobs):
            run.disable_immediate = False
            context = {"parallel_steps": 1_000, "qi_id": run.run_id}
            self.handler._checkpoints = _Checkpoints(run)  # type: ignore[assignment]
        answer = await self.call(run, function_id, target=job.target, attempt=job.attempt, **context)
        run.answers.append(answer)
        if "retry-after" in answer.headers:
            run.retry_after.append(answer.headers["retry-after"])
        if answer.status == 206:
            self._apply(run, job, answer)
        elif answer.status == 200:
            run.status, run.output = "Completed", answer.json
        elif answer.no_retry or job.attempt + 1 >= self.max_attempts:
            run.status, run.output = "Failed", answer.json
        else:
            run.jobs.append(Job(job.target, job.op, job.attempt + 1))

    async def call(
        self,
        run: Run,
        function_id: str | None = None,
        *,
        target: str | None = None,
        attempt: int = 0,
        **context: Any,
    ) -> Answer:
        """One call; ``context`` are further fields of the body's ``ctx``."""
        body = {
            "ctx": {
                "run_id": run.run_id,
                "attempt": attempt,
                "max_attempts": self.max_attempts,
                "disable_immediate_execution": run.disable_immediate,
                "stack": {"stack": run.stack, "current": len(run.stack)},
                **context,
            },
            "event": run.event,
            "events": [run.event],
            "steps": run.memos,
            "version": 1,
        }
        run.bodies.append(body)
        query = {"fnId": function_id or self.functions[0].id, "stepId": target or DISCOVER}
        request = CommRequest(
            body=json.dumps(body).encode(),
            headers={},
            query_params=query,
            raw_request=object(),
            request_url="http://127.0.0.1/api/inngest",
        )
        response = self.handler.post_sync(request) if self.blocking else await self.handler.post(request)
        return _read(response)

    def _apply(self, run: Run, job: Job, answer: Answer) -> None:
        ops = answer.ops
        if len(ops) > 1:
            run.disable_immediate = True
        if job.target is None:
            run.found = frozenset(op["id"] for op in ops)
        for op in ops:
            if op["op"] == "StepRun":
                self._end_step(run, _ending(job, op), {"data": op.get("data")})
            elif op["op"] in ("StepError", "StepFailed"):
                is_final = op["op"] == "StepFailed" or answer.no_retry or job.attempt + 1 >= self.max_attempts
                if is_final:
                    self._end_step(run, _ending(job, op), {"error": op["error"]})
                elif job.target is None and (op.get("opts") or {}).get("parallelMode"):
                    run.jobs.append(Job(op["id"], {**op, "op": "StepPlanned"}, 1))
                else:
                    run.jobs.append(Job(job.target, job.op, job.attempt + 1))
            elif op["id"] not in run.memos and all(op["id"] != (due.op or {}).get("id") for due in run.jobs):
                run.jobs.append(Job(op["id"] if op["op"] == "StepPlanned" else None, op))

    def _end_step(self, run: Run, job: Job, memo: Any) -> None:
        assert job.op is not None
        step_id = job.op["id"]
        assert step_id not in run.memos, f'step "{job.name}" ended twice'
        run.memos[step_id] = memo
        run.stack.append(step_id)
        are_others_due = any(due.op is not None and due.op["id"] in run.found for due in run.jobs)
        is_discovery_due = any(due.op is None for due in run.jobs)
        if not is_discovery_due and (job.is_race or not are_others_due):
            run.jobs.append(Job())

    def _reply(self, job: Job) -> Any:
        assert job.op is not None
        reply = self.replies.get(job.name, NULL)
        if callable(reply):
            reply = reply(job.op)
        return None if reply is NULL else reply


@dataclass
class _Checkpoints:
    """Keeps steps of a run that a call executes."""

    run: Run
    are_default = False
    join_answers = True
    has_lease = False
    are_possible = True

    async def commit(self, request: CheckpointRequest, io: IO) -> None:
        if isinstance(io, AsyncIO):
            await asyncio.sleep(0)
        for op in request.steps:
            assert op.id not in self.run.memos, f'step "{op.display_name}" ended twice'
            self.run.memos[op.id] = {"data": json.loads(bytes(op.data))}  # type: ignore[arg-type]
            self.run.stack.append(op.id)


def _ending(job: Job, op: dict[str, Any]) -> Job:
    """The job whose step has ended: as it was planned, or, where it was run at once, as it is reported."""
    return job if job.op is not None else Job(op=op)


def _read(response: CommResponse) -> Answer:
    return Answer(int(response.status_code), response.headers, response.body)


def engine_for(
    *handlers: Callable[..., Any],
    client: Client | None = None,
    replies: Mapping[str, Any] | None = None,
    blocking: bool = False,
    max_attempts: int = 3,
    **options: Any,
) -> FakeEngine:
    """An engine and an app of functions with the names of the handlers; ``options`` go to ``create_function``."""
    client = client or Client(app_id="app", is_production=False)
    trigger = TriggerEvent(event="test/event")
    functions = [
        client.create_function(fn_id=handler.__name__, trigger=trigger, **options)(handler) for handler in handlers
    ]
    return FakeEngine(client, functions, replies or {}, blocking, max_attempts)


async def complete(handler: Callable[..., Any], *, data: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """The output of a run of a handler; ``options`` are those of ``engine_for``."""
    run = await engine_for(handler, **options).run(data=data)
    assert run.status == "Completed", run.output
    return run.output


async def fail(handler: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """The error of a run of a handler."""
    run = await engine_for(handler, **options).run()
    assert run.status == "Failed", run.output
    return run.output  # type: ignore[no-any-return]
