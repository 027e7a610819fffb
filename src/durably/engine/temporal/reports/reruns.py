"""Reruns of runs, also from one of their steps."""

import hashlib

import msgspec

from durably.engine.core.errors import FunctionPausedError, RunNotFoundError, StepNotFoundError
from durably.engine.scheduling.events import ENTROPY_BYTES, make_id
from durably.engine.temporal.messages import CopiedMemos, MemoRecord, RunInput
from durably.engine.temporal.routing.router import Router
from durably.engine.views import FromStep
from durably.protocol.opcodes import hash_step_id

from .function_lists import FunctionLists
from .run_reports import RunReports
from .run_views import RunViews

_MOST_NAMED = 20


class Reruns:
    def __init__(self, router: Router, functions: FunctionLists, reports: RunReports, views: RunViews) -> None:
        self._router = router
        self._functions = functions
        self._reports = reports
        self._views = views

    async def start(self, run_id: str, now: int, seed: str, from_step: FromStep | None = None) -> str:
        """Repeat a run. The same ``now`` and ``seed`` give the same run.

        Raises ``RunNotFoundError``, ``FunctionNotFoundError``, ``FunctionPausedError``, ``StepNotFoundError``, and
        ``RunUnavailableError`` if no worker reads the steps of the run.
        """
        given = await self._views.input(run_id)
        if given is None:
            raise RunNotFoundError(f"there is no run with the id {run_id!r}")
        record = await self._functions.get(given.function_id)
        if record.is_paused:
            raise FunctionPausedError(
                f"the function {given.function_id!r} is paused; resume it before you run anything again"
            )
        copied = None if from_step is None else await self._copied(given, from_step)
        # The step that invoked the run has its result already.
        events = tuple(msgspec.structs.replace(event, invoker=None) for event in given.events)
        digest = hashlib.sha256(f"{seed}\n{run_id}".encode()).digest()[:ENTROPY_BYTES]
        run = msgspec.structs.replace(
            self._router.run_input(record, events),
            run_id=make_id(now, lambda _: digest),
            rerun_of=run_id,
            parent=None,
            parent_step=None,
            copied=copied,
        )
        return await self._router.gates.start(run, record)

    async def _copied(self, given: RunInput, from_step: FromStep) -> CopiedMemos:
        """The memos that are older than a step's. Raises ``StepNotFoundError``."""
        accepted = (from_step.step_id, hash_step_id(from_step.step_id))
        names: list[str] = []
        size = 0
        async for page in self._reports.steps_pages(given.run_id):
            for step, memo in zip(page.steps, page.memos, strict=True):
                if step.name == from_step.step_id or step.step_id in accepted:
                    arguments = from_step.input
                    step_input = None
                    if arguments is not None:
                        step_input = MemoRecord(step.step_id, msgspec.Raw(msgspec.json.encode({"input": arguments})))
                    return CopiedMemos(run_id=given.run_id, memos=len(names), size=size, step_input=step_input)
                names.append(step.name)
                size += len(memo)
        named = ", ".join(map(repr, names[:_MOST_NAMED])) + (", …" if len(names) > _MOST_NAMED else "")
        known = f"it has {named}" if names else "it has none; run it again from the start"
        raise StepNotFoundError(f"run {given.run_id} has no finished step {from_step.step_id!r}: {known}")
