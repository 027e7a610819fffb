"""The context that the parts of a run's workflow share.

Everything here is workflow code.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from temporalio import workflow

from durably.engine.core.inputs import CancelRequested, Input
from durably.engine.core.machine import start
from durably.engine.model.events import ReceivedEvent
from durably.engine.temporal.flow.run_flow import RunFlowControl
from durably.engine.temporal.messages import CopiedMemos, RunInput
from durably.engine.temporal.workflow_code import now
from durably.protocol.opcodes import Op

from .contents import CACHED, CONTENTS, CachedContent, RunContent


class RunContext:
    """State, events and memos of a run, and the tasks that execute its commands.

    ``apply`` applies an input to the run. ``error`` is the first error of a task: an error of the engine or of its
    configuration.
    """

    def __init__(self, run: RunInput, apply: Callable[[Input], None]) -> None:
        self.run = run
        self.apply = apply
        self.error: Exception | None = None
        self.triggers = [
            ReceivedEvent(each.id, each.name, bytes(each.body), origin=each.origin, traceparent=each.traceparent)
            for each in run.events
        ]
        copied = run.copied or CopiedMemos(run_id="", memos=0, size=0)
        given = copied.step_input
        step_input = None if given is None else (given.step_id, bytes(given.memo))
        self._cached = CachedContent(RunContent([event.body for event in self.triggers], step_input))
        self.memoised: set[str] = set()
        self.state = start(run.max_attempts, now(), copied.memos, copied.size)
        self.flow = RunFlowControl(run, self.cancel)
        self.registrations: set[asyncio.Task[None]] = set()
        """Registrations of waits. The steps after them run only when they are registered."""
        self._content_key = workflow.info().run_id
        CACHED[self._content_key] = self._cached

    @property
    def content(self) -> RunContent:
        return self._cached.content

    def add_memo(self, step_id: str, memo: bytes) -> None:
        self.memoised.add(step_id)
        self.content.add(step_id, memo)

    def share_content(self) -> None:
        """Share the content with the calls that this process makes."""
        CONTENTS.put(self._content_key, self.content)

    def forget_content(self) -> None:
        CONTENTS.forget(self._content_key)

    def cancel(self, reason: str) -> None:
        self.apply(CancelRequested(reason))

    def known(self, ops: Iterable[Op], target: str = "") -> frozenset[str]:
        return frozenset({target, *(op.id for op in ops)} & self.memoised)

    def spawn(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> "asyncio.Task[None]":
        return asyncio.create_task(self._run(work, *arguments))

    async def _run(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        try:
            await work(*arguments)
        except Exception as error:
            self.error = self.error or error


def stop(task: "asyncio.Task[None]") -> None:
    if task is not asyncio.current_task():
        task.cancel()
