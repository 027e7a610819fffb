"""Messages about runs for those who follow them: their status, steps and progress, from the state of their workflows.

While somebody follows a run, one task for all of its listeners looks at its workflow: each second whether the history
has grown, and then what has changed. Functions cannot publish messages of their own on Temporal.
"""

import asyncio
from collections.abc import Mapping

import msgspec
from temporalio.service import RPCError

from durably.engine.model.channels import Channels, describe_run, describe_step
from durably.engine.model.run_report import report_steps
from durably.engine.model.runs import Run, Step
from durably.engine.temporal.index import RunLists
from durably.engine.temporal.run_reports import RunReports
from durably.engine.temporal.support import UNSUPPORTED
from durably.engine.temporal.workflow_code import wall_clock
from durably.protocol.channels import PROGRESS_TOPIC, RUN_TOPIC, STEP_TOPIC, MessageBatch, is_run_id
from durably.protocol.engine_errors import EngineError, NotSupportedError
from durably.protocol.text import get_logger

_LOOK_SECONDS = 1.0
_logger = get_logger("durably.engine")


class _Followed:
    """A run that somebody follows, as it was when it was last read. Steps are without their values."""

    def __init__(self) -> None:
        self.reading = asyncio.Lock()
        self.run: Run | None = None
        self.finished: list[Step] = []
        self.others: list[Step] = []

    @property
    def has_ended(self) -> bool:
        return self.run is not None and self.run.status.has_ended


class RunStreams:
    """The channels of the runs that are followed in this process, on an event loop."""

    def __init__(self, lists: RunLists, reports: RunReports) -> None:
        self._lists, self._reports = lists, reports
        self._channels = Channels(wall_clock, asyncio.get_running_loop())
        self._followed: dict[str, _Followed] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, positions: Mapping[str, int], *, reader: str | None, waits: bool) -> MessageBatch:
        """See ``Engine.read_messages``. Raises ``NotSupportedError`` for a channel that is not a run's."""
        for name in positions:
            if not is_run_id(name):
                raise NotSupportedError(
                    f"the channel {name!r} is not the id of a run, and an engine on Temporal has no other channels: "
                    f"{UNSUPPORTED['read_messages.channels']}"
                )
            if name not in self._followed:
                self._followed[name] = followed = _Followed()
                self._tasks.add(task := asyncio.create_task(self._watch(name, followed)))
                task.add_done_callback(self._tasks.discard)
        return await self._channels.read(positions, self._load, reader=reader, waits=waits)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._channels.close()

    async def _watch(self, run_id: str, followed: _Followed) -> None:
        """Look at a run until it ends, or nobody has followed it for a while."""
        position: int | None = None
        try:
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                if followed.has_ended or not self._channels.is_followed(run_id):
                    return
                try:
                    changes = await self._lists.wait_for_changes(position, run_id)
                    if changes.position != position:
                        await self._look(run_id, followed)
                        position = changes.position
                except (EngineError, RPCError) as error:
                    _logger.debug("run %s cannot be followed at the moment: %s", run_id, error)
        finally:
            del self._followed[run_id]

    async def _load(self, run_id: str) -> tuple[Run, list[Step]] | None:
        followed = self._followed.get(run_id) or _Followed()
        await self._look(run_id, followed)
        return None if followed.run is None else (followed.run, followed.finished + followed.others)

    async def _look(self, run_id: str, followed: _Followed) -> None:
        """Read the run, and publish what has changed since it was last read."""
        async with followed.reading:
            rows = await self._reports.rows(run_id, has_context=False, after=len(followed.finished))
            if rows is None:
                return
            steps = [_without_values(step) for step in report_steps(rows)]
            before, followed.run = followed.run, rows.run
            shown = {step.hashed_id: describe_step(step) for step in followed.others}
            followed.finished += steps[: len(rows.finished)]
            followed.others = steps[len(rows.finished) :]
            if before is None:
                return
            for step in steps:
                if shown.get(step.hashed_id) != (data := describe_step(step)):
                    self._channels.add_own(run_id, STEP_TOPIC, data)
            if rows.run.progress != before.progress:
                self._channels.add_own(run_id, PROGRESS_TOPIC, rows.run.progress)
            if (data := describe_run(rows.run)) != describe_run(before):
                self._channels.add_own(run_id, RUN_TOPIC, data)
            if followed.has_ended:
                self._channels.end(run_id)


def _without_values(step: Step) -> Step:
    return msgspec.structs.replace(step, input=None, output=None, spans=[])
