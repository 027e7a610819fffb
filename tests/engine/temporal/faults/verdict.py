"""Invariants after a storm, read from the server's histories and the diary of the workers."""

import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from temporalio.client import Client

from durably.engine.model.runs import RunStatus
from durably.engine.temporal.engine import WorkflowEngine
from durably.engine.temporal.ids import run_workflow_id
from durably.engine.temporal.messages import ContentPage, ContentRequest

from .limited_functions import LIMITED, kind_of
from .storm import APP, SETTINGS, Storm

FUNCTION_ENDS = {f"{APP}-doomed": RunStatus.FAILED}
"""All other runs complete."""


@dataclass(frozen=True)
class Execution:
    """An execution of a step, by the call of a generation. ``at`` is milliseconds since the epoch."""

    run: str
    step: str
    generation: int
    token: str
    at: int


def read_diary(path: Path) -> dict[str, dict[str, list[Execution]]]:
    """Executions by run and step."""
    found: dict[str, dict[str, list[Execution]]] = defaultdict(lambda: defaultdict(list))
    for line in path.read_text().splitlines():
        execution = msgspec.json.decode(line, type=Execution)
        found[execution.run][execution.step].append(execution)
    return found


async def find_faults(storm: Storm, client: Client) -> list[str]:
    """Sentences about violated conditions."""
    faults = [fault async for fault in _of_acknowledged_events(storm, client)]
    for run_id, steps in read_diary(storm.diary).items():
        faults += [fault async for fault in _of_run(client, run_id, steps)]
    return faults + [fault async for fault in _of_limits(storm, client)]


async def _of_acknowledged_events(storm: Storm, client: Client) -> AsyncIterator[str]:
    engine = WorkflowEngine(client, SETTINGS)
    for accepted in storm.accepted:
        wanted = FUNCTION_ENDS.get(accepted.function, RunStatus.COMPLETED)
        runs = await engine.event_runs(accepted.event_id)
        if [run.function_id for run in runs] != [accepted.function]:
            yield f"event {accepted.event_id} for {accepted.function} started {runs}"
        for run in runs:
            if run.status is not wanted and not (accepted.may_be_skipped and run.status is RunStatus.SKIPPED):
                yield f"run {run.id} of {run.function_id} is {run.status}, and not {wanted}: {run.output}"


async def _of_run(client: Client, run_id: str, steps: dict[str, list[Execution]]) -> AsyncIterator[str]:
    memos = await _memos(client, run_id)
    for step, executions in steps.items():
        memo = memos.get(hashlib.sha1(step.encode()).hexdigest())
        if memo is None:
            yield f"step {step} of run {run_id} was executed, and has no memo"
        elif "data" in memo:  # The others are errors.
            result = memo["data"]
            for fault in _of_step(run_id, step, result["token"] if isinstance(result, dict) else result, executions):
                yield fault


def _of_step(run_id: str, step: str, token: object, executions: list[Execution]) -> list[str]:
    """The call whose result was committed is the last one that executed the step."""
    counting = [execution for execution in executions if execution.token == token]
    if len(counting) != 1:
        return [f"step {step} of run {run_id} has a memo that no execution returned: {token}"]
    [that] = counting
    return [
        f"step {step} of run {run_id} was executed by call {that.generation}, whose result was committed, and by "
        f"call {other.generation}"
        for other in executions
        if other is not that and other.generation >= that.generation
    ]


async def _of_limits(storm: Storm, client: Client) -> AsyncIterator[str]:
    """The committed steps of each limit never overlapped beyond it."""
    engine = WorkflowEngine(client, SETTINGS)
    times: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    for accepted in storm.accepted:
        function = accepted.function.removeprefix(f"{APP}-")
        if function not in LIMITED:
            continue
        for run in await engine.event_runs(accepted.event_id):
            for memo in (await _memos(client, run.id)).values():
                result = memo.get("data") if isinstance(memo, dict) else None
                if isinstance(result, dict) and "began" in result:
                    limit = function, kind_of(function, accepted.number)
                    times[limit] += [(result["began"], 1), (result["ended"], -1)]
    for (function, kind), changes in times.items():
        most = max(itertools.accumulate(change for _, change in sorted(changes)))
        if most > LIMITED[function]:
            yield f"{most} steps of {function} ran at a time for the key {kind}; its limit is {LIMITED[function]}"


async def _memos(client: Client, run_id: str) -> dict[str, dict[str, Any]]:
    """Memos by the hash of the step's id."""
    handle, found = client.get_workflow_handle(run_workflow_id(run_id)), {}
    page = None
    while page is None or len(found) < page.total:
        page = await handle.query("content", ContentRequest(len(found)), result_type=ContentPage)
        found |= {memo.step_id: json.loads(bytes(memo.memo)) for memo in page.memos}
    return found
