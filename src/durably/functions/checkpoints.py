"""What a call sends to the engine while it continues: checkpoints (spec §10), and lines of ``ctx.logger``.

Lines are sent in development only. They are collected for a fifth of a second and sent in the background, so a call
neither waits for them nor fails because of them. Lines that cannot be sent are dropped; the app's own log has them.
"""

import asyncio
import contextlib
import contextvars
import datetime as dt
import threading
import time
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from typing import Protocol
from urllib.parse import quote
from weakref import WeakKeyDictionary

import msgspec

from durably.app import App
from durably.engine_client import execute
from durably.errors import (
    CallStaleError,
    CheckpointRefusedError,
    EngineError,
    EngineStoppingError,
    OutputUnserializableError,
    TransportError,
)
from durably.execution import Checkpointed, Ending, FoundSteps, Memo, Outcome, Raised, Returned, StepReport
from durably.io.background_loop import get_background_loop
from durably.io.http_client import IO, AsyncIO, PendingResult, Request, request_with_keys
from durably.protocol.call import CheckpointRequest, LogLine
from durably.protocol.opcodes import Op, Opcode, hash_step_id
from durably.protocol.options import Checkpointing
from durably.protocol.text import printable
from durably.run_logger import KeepLine, Logger
from durably.values.outputs import finish, to_end_op, to_json

from .defers import CallDefers
from .middleware import MiddlewareStack
from .publishing import CallReports

_ABSENCE_SECONDS = 60.0
"""Seconds without checkpoints, or without lines, after an engine refused them."""


class Checkpoints(Protocol):
    """Sends finished steps to the engine that made the call."""

    @property
    def are_default(self) -> bool:
        """Whether functions without the option ``checkpointing`` send checkpoints."""
        ...

    @property
    def join_answers(self) -> bool:
        """Whether the engine accepts finished steps and a following op in one answer.

        Other engines take several ops for parallel branches, and plan each later step of the run.
        """
        ...

    @property
    def has_lease(self) -> bool:
        """Whether the engine may give up a call without this process knowing."""
        ...

    def certain_at_arrival(self) -> float:
        """Latest time at which a call that arrives now was certainly valid.

        The time is that of ``time.monotonic()``.

        The call may have been in transit for a long time.
        """
        ...

    def may_be_stale(self, since: float) -> bool:
        """Whether the engine may have given up a call that was valid at ``since``.

        An empty checkpoint answers this with certainty.
        """
        ...

    async def commit(self, request: CheckpointRequest, io: IO) -> None:
        """Send finished steps to the engine.

        They are stored durably when this returns. Repetitions change nothing.

        Raises ``CallStaleError`` if the call must stop because the engine has given it up. Raises
        ``CheckpointRefusedError`` if the engine refuses the steps for any other reason; then they go into the call's
        answer.
        """
        ...


class HttpCheckpoints:
    """Sends checkpoints of one app to the engine's HTTP API, without retries.

    The answer of the call sends the same steps, and is known to work.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._absent_until = 0.0
        self.are_default = False
        self.join_answers = False
        self.has_lease = False  # the engine reports a given-up call at the next checkpoint

    @property
    def are_possible(self) -> bool:
        """Whether the engine may have the endpoint."""
        return time.monotonic() >= self._absent_until

    def certain_at_arrival(self) -> float:
        return time.monotonic()

    def may_be_stale(self, since: float) -> bool:
        return False

    async def commit(self, request: CheckpointRequest, io: IO) -> None:
        app = self._app
        url = f"{app.api_origin}/v1/checkpoint/{quote(request.run_id, safe='')}/async"
        body = msgspec.json.encode(request)
        http = Request("POST", url, app.headers(), body, app.request_timeout)
        try:
            response = await request_with_keys(io, http, app.signing_keys)
        except TransportError as error:
            raise CheckpointRefusedError(str(error)) from None
        if response.status == HTTPStatus.CONFLICT:
            raise CallStaleError(f"run {request.run_id}: the engine has given this call up, so it stops")
        if response.status == HTTPStatus.NOT_FOUND:
            self._absent_until = time.monotonic() + _ABSENCE_SECONDS
        if response.status >= HTTPStatus.MULTIPLE_CHOICES:
            raise CheckpointRefusedError(f"the engine answered a checkpoint with {response.status}")


_DISCOVERY_ID = hash_step_id("discovery")


class StepCheckpointer:
    """The finished steps of one call that the engine does not have yet.

    It is an ``execution.Checkpointer``. ``call`` identifies the call to the engine. Unless ``checkpoints``
    ``join_answers``, kept steps are committed before the answer.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        config: Checkpointing,
        call: CheckpointRequest,
        io: IO,
        middleware: MiddlewareStack | None,
        logger: Logger,
        reports: CallReports,
        defers: CallDefers,
    ) -> None:
        self._reports = reports
        self._defers = defers
        self._checkpoints = checkpoints
        self._config = config
        self._call = call
        self._io = io
        self._middleware = middleware
        self._logger = logger
        # The context outside the function: tasks created in it do not belong to the run.
        self._context = None if config.interval_seconds is None else contextvars.copy_context()
        # By hashed id. The commit of a timer may remove some from another thread, one by one.
        self._unsent: dict[str, StepReport] = {}
        self._failed: list[StepReport] = []
        self._timers: list[PendingResult[None]] = []
        self._stale: CallStaleError | None = None
        self._must_stop = False
        """The call is stale, or a checkpoint was refused."""
        self._has_finished_steps = False
        runtime = config.max_runtime_seconds
        self._deadline = None if runtime is None else time.monotonic() + runtime

    # -- while the function runs

    @property
    def is_over(self) -> bool:
        """Whether the call must end.

        A call that has finished no step continues even if it is late, because the next call would get no further.
        """
        is_late = self._deadline is not None and time.monotonic() >= self._deadline
        return self._must_stop or (is_late and self._has_finished_steps)

    async def take(self, report: StepReport) -> Memo | None:
        """Keep or commit the step. The function continues with the memo of a next call."""
        memo = self._memo_of(report)
        await self._reports.flush(self._io)  # Listeners get the messages of a step before its end.
        await self._defers.transform(self._middleware)
        if self._middleware is not None:
            await self._middleware.end_execution()
            await self._middleware.transform_step(report)
        if memo is None or self._middleware is not None:
            finish(report)
        if report.error is not None:
            self._failed.append(report)
            return None
        self._has_finished_steps = True
        self._unsent[report.op.id] = report
        if memo is None:
            return None
        if len(self._unsent) >= self._config.buffered_steps:
            if self._timers:
                self.close()
            await self._commit(self._io)
        elif len(self._unsent) == 1 and self._context is not None and self._config.interval_seconds is not None:
            work = self._commit_after(self._config.interval_seconds)
            self._timers.append(self._context.run(self._io.detach, work))
        if self._must_stop:
            return None
        if self._middleware is not None:
            await self._middleware.begin_execution()
        return memo

    async def take_all(self, reports: Sequence[StepReport]) -> Sequence[Memo] | None:
        """Commit steps that were executed together.

        If one has failed or the engine refuses them, the call's answer has all of them.
        """
        await self._reports.flush(self._io)
        memos = [memo for report in reports if (memo := self._memo_of(report)) is not None]
        self._has_finished_steps = True
        if len(memos) < len(reports):
            return None
        self._unsent |= {report.op.id: report for report in reports}
        await self._commit(self._io)
        if not self._must_stop:
            return memos
        for report in reports:
            self._unsent.pop(report.op.id, None)
        return None

    def _memo_of(self, report: StepReport) -> Memo | None:
        """The step's memo; ``None`` if only the next call can know it.

        Middleware that transforms outputs restores them when it transforms the input of a call, which happens once.
        """
        if report.error is not None:
            return None
        try:
            data, returned = to_json(report.output, f'step "{report.op.display_name}"', report.function_id)
        except OutputUnserializableError:
            return None
        if self._middleware is None:
            report.op.data = msgspec.Raw(data)
        return Memo(returned)

    async def _commit(self, io: IO) -> None:
        reports = list(self._unsent.values())
        ops = [*(report.op for report in reports), *self._defers.ops]
        request = msgspec.structs.replace(self._call, steps=ops, ts=time.time_ns() // 1_000_000)
        try:
            await self._checkpoints.commit(request, io)
        except CallStaleError as error:
            self._stale, self._must_stop = error, True
        except EngineStoppingError:
            self._must_stop = True
            self._logger.info(
                "run %s: this process stops, so the call ends and its answer has the finished steps; the run continues "
                "in another process, or after a restart",
                request.run_id,
            )
        except CheckpointRefusedError as error:
            self._must_stop = True
            self._logger.warning(
                "run %s: a checkpoint was refused, the call ends: %s", request.run_id, printable(error)
            )
        else:
            for op in ops:
                self._unsent.pop(op.id, None)
            self._defers.note_sent(ops)

    async def _commit_after(self, seconds: float) -> None:
        while self._unsent and not self._must_stop:
            await asyncio.sleep(seconds)
            if self._unsent:
                await self._commit(AsyncIO())

    # -- at the end of the call

    async def conclude(self, ending: Ending) -> Outcome:
        """The answer, with all steps that the engine does not have."""
        self.close()
        if isinstance(ending, Returned) and self._unsent:
            ending = to_end_op(ending)
        if self._must_commit_before(ending):
            await self._commit(self._io)
        if self._stale is not None:
            return Raised(self._stale)
        unsent = list(self._unsent.values())
        if isinstance(ending, Checkpointed):
            return FoundSteps(
                [*unsent, *self._failed]
                # An op after which the engine calls again.
                or [StepReport(Op(id=_DISCOVERY_ID, op=Opcode.DISCOVERY_REQUEST))]
            )
        if isinstance(ending, FoundSteps):
            return FoundSteps([*unsent, *ending.reports])
        return FoundSteps(unsent) if unsent else ending  # an error's answer has no room for steps: it is raised again

    def _must_commit_before(self, ending: Ending) -> bool:
        if self._must_stop or not self._unsent:
            return False
        if isinstance(ending, Raised):
            return True
        following = ending.reports if isinstance(ending, FoundSteps) else self._failed
        is_end = any(report.op.op == Opcode.RUN_COMPLETE for report in following)
        return not self._checkpoints.join_answers and not is_end and len(self._unsent) + len(following) > 1

    def close(self) -> None:
        """Stop the timers.

        A commit that a timer has begun may be repeated, which changes nothing.
        """
        while self._timers:
            self._timers.pop().cancel()


class CallLeaseCheck:
    """Checks that the engine has not given up a call.

    It is an ``execution.LeaseCheck``. ``call`` identifies the call.
    """

    def __init__(self, checkpoints: Checkpoints, call: CheckpointRequest, io: IO) -> None:
        self._checkpoints = checkpoints
        self._call = call
        self._io = io
        self._known_at = checkpoints.certain_at_arrival()

    @property
    def may_be_stale(self) -> bool:
        return self._checkpoints.may_be_stale(self._known_at)

    async def confirm(self) -> None:
        """Raises ``CallStaleError`` if the engine has given up the call.

        Raises ``CheckpointRefusedError`` if the engine does not answer.
        """
        while self.may_be_stale:  # repeat if the answer itself may have been in transit for a long time
            asked_at = time.monotonic()
            request = msgspec.structs.replace(self._call, ts=time.time_ns() // 1_000_000)
            await self._checkpoints.commit(request, self._io)
            self._known_at = asked_at


MAX_LINES = 500
"""Maximum number of lines of one run that are sent at a time. A line reports how many more there were."""
MAX_LINE_LENGTH = 8192
_DELAY_SECONDS = 0.2
_TIMEOUT_SECONDS = 5.0


class _Pending(msgspec.Struct):
    """The unsent lines of one run, and the number of dropped lines."""

    lines: list[LogLine] = []
    dropped: int = 0


class LogSender:
    """Sends the lines of an app's runs to its engine."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._pending: dict[str, _Pending] = {}
        self._absent_until = 0.0

    def add(self, run_id: str, attempt: int, level: str, message: str, step: str | None) -> None:
        """Collect a line. Safe in any thread."""
        if time.monotonic() < self._absent_until:
            return
        if len(message) > MAX_LINE_LENGTH:
            message = f"{message[:MAX_LINE_LENGTH]}… ({len(message) - MAX_LINE_LENGTH} characters are not kept)"
        line = LogLine(at=dt.datetime.now(dt.UTC), level=level, message=message, step=step, attempt=attempt)
        with self._lock:
            is_first = not self._pending
            pending = self._pending.setdefault(run_id, _Pending())
            if len(pending.lines) < MAX_LINES:
                pending.lines.append(line)
            else:
                pending.dropped += 1
        if is_first:
            # Use an empty context: the lines of all runs must not join this run's trace nor keep its memos.
            contextvars.Context().run(get_background_loop().submit, self._send_later())

    async def _send_later(self) -> None:
        await asyncio.sleep(_DELAY_SECONDS)
        with self._lock:
            pending, self._pending = self._pending, {}
        for run_id, of_run in pending.items():
            if of_run.dropped:
                note = f"{of_run.dropped} more lines are not kept: at most {MAX_LINES} of a run at a time"
                of_run.lines.append(LogLine(at=of_run.lines[-1].at, level="WARNING", message=note))
            with contextlib.suppress(Exception):
                await self._send(run_id, of_run.lines)

    async def _send(self, run_id: str, lines: list[LogLine]) -> None:
        try:
            await execute(self._app, "add_run_logs", {"run_id": run_id, "lines": lines}, AsyncIO(), _TIMEOUT_SECONDS)
        except EngineError:  # of another engine than Durably's, for example
            self._absent_until = time.monotonic() + _ABSENCE_SECONDS


_senders: WeakKeyDictionary[App, LogSender] = WeakKeyDictionary()


def line_keeper(app: App, run_id: str, attempt: int) -> KeepLine | None:
    """The function that takes the lines of a call.

    ``None`` unless the app is in development mode, with an engine that keeps them.
    """
    if app.is_production or (app.in_process is not None and not app.in_process.keeps_logs):
        return None
    sender = _senders.get(app)
    if sender is None:
        sender = _senders[app] = LogSender(app)
    return partial(sender.add, run_id, attempt)
