"""The state and the decisions of one call, for sync and async functions.

Decides which memo a step gets, which step is the call's target, whether a new step is executed at once, and how the
result of an executed step is reported (spec §5.1.3, §5.3.1, §5.4).
"""

import os.path
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import msgspec

from durably.execution.step import sendable_arguments
from durably.protocol.errors import Error, ErrorCode, StepError, is_retriable
from durably.protocol.opcodes import PARALLEL_MODE_OPT, STEP_INPUT_OPT, Opcode, ParallelMode, Timing
from durably.protocol.usage import ModelUsage, usage_metadata

from .step import (
    Divergence,
    Durations,
    Memo,
    MemoUnreadableError,
    ReplaceStep,
    Step,
    StepIds,
    StepInfo,
    StepMemos,
    StepReport,
    StepRequest,
    decode_result,
    to_rare_memo,
)

T = TypeVar("T")

_OWN_CODE = os.path.dirname(__file__)

in_step: ContextVar[Step | None] = ContextVar("durably_in_step", default=None)
"""The step whose handler is running. A step inside it is an error. A task created in it does not belong to the run."""

current_tracker: ContextVar["Tracker | None"] = ContextVar("durably_tracker", default=None)
"""The async call whose function is running. Tasks inherit it, which identifies a run's tasks."""


class Tracker(Protocol):
    def track(self, task: Any) -> None: ...


class Returned(msgspec.Struct):
    """The function ran to its end. ``source`` names it in errors about the value."""

    value: Any
    source: str = "the function"


class Raised(msgspec.Struct):
    """The function raised, or the call cannot continue."""

    error: BaseException


class FoundSteps(msgspec.Struct):
    """Steps without memos: executed, planned, or left to the engine."""

    reports: list[StepReport]


class Checkpointed(msgspec.Struct):
    """The function cannot continue.

    The ``Checkpointer`` has every step that the call has executed.
    """


Outcome = Returned | Raised | FoundSteps
"""The answer to the engine."""
Ending = Outcome | Checkpointed
"""The result of running the function. Steps in checkpoints are not repeated."""


class StepNestedError(Error):
    code = ErrorCode.STEP_NESTED
    is_retriable = False
    include_stack = False


class StepUnexpectedError(Error):
    """A call targets a step that the function does not reach."""

    code = ErrorCode.STEP_UNEXPECTED
    include_stack = False


class NestedStep(BaseException):
    """Leaves a handler that called a step.

    It is a ``BaseException``, so that the handler does not swallow it.
    """


class Hooks(Protocol):
    """Receives a call's progress, for middleware.

    Each hook may do I/O; ``execution`` itself does none.
    """

    async def unmemoized(self) -> None:
        """New code is about to run.

        Called once, when all memos are returned or a step has none.
        """

    async def before_step(self, step: StepInfo) -> None: ...

    async def after_step(self, report: StepReport) -> None: ...


class Checkpointer(Protocol):
    """Receives the steps that a call has executed. The function continues (spec §10)."""

    @property
    def is_over(self) -> bool:
        """Whether the call must execute no further step."""
        ...

    async def take(self, report: StepReport) -> Memo | None:
        """Store an executed step. Returns its memo, or ``None`` if the call must end."""
        ...

    async def take_all(self, reports: Sequence[StepReport]) -> Sequence[Memo] | None:
        """Store steps that were executed together, or none of them.

        Returns their memos, or ``None`` if the call must end with these steps.
        """
        ...


class Threads(Protocol):
    """Worker threads, in which sync handlers of async functions run."""

    async def run(self, work: Callable[[], T], *, on_abandoned: Callable[[], None] | None = None) -> T:
        """Call ``work``, which never raises, without blocking the event loop.

        ``on_abandoned`` is called if the caller is cancelled and ``work`` continues.
        """
        ...


class LeaseCheck(Protocol):
    """Checks that the engine has not given the call up."""

    @property
    def may_be_stale(self) -> bool: ...

    async def confirm(self) -> None:
        """Ask the engine. Raises if the call must end."""
        ...


class StepSpan(Protocol):
    """The span of a step that is executed."""

    def ended(self, error: BaseException | None, *, is_cut: bool, usage: Sequence[ModelUsage]) -> None:
        """The handler has returned, or raised ``error``.

        ``is_cut``: it did neither, because its call was given up. ``usage`` is what it has recorded of models.
        """
        ...


class StepTracer(Protocol):
    """Reports the steps that a call executes as spans."""

    def begin_step(self, step: StepInfo) -> StepSpan:
        """The step's handler is about to run, in the current context."""
        ...


class Diagnostics(Protocol):
    """Receives possible mistakes in a call's function."""

    def divergence(self, divergence: Divergence) -> Error | None:
        """The function does not reach all memos. A returned error ends the call."""

    def unfinished_steps(self, step_ids: Sequence[str]) -> None:
        """The function returned without some of its steps.

        ``step_ids`` are steps in tasks that no code has awaited.
        """

    def not_awaited(self, problem: str) -> None:
        """The function raised an error, and has not awaited a step either."""

    def abandoned_thread(self, step_id: str) -> None:
        """The step was cancelled while its handler ran in a thread, which continues."""


class Assignment(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    """What the engine asks of a call.

    - ``inputs``: Replacements for arguments of steps, by hashed step id.
    - ``stack``: The order in which the memos were made.
    - ``target``: The hashed id of the only step to execute; ``None`` to discover.
    - ``also``: Further steps that the same call may execute, one after another, as long as it ``has_time``.
    - ``parallel_steps``: The number of new steps that the call may execute if it finds several at once.
    - ``attempt``: Counts from 0.
    """

    function_id: str = ""
    inputs: Mapping[str, Sequence[Any]] = {}
    stack: Sequence[str] = ()
    target: str | None = None
    also: Sequence[str] = ()
    has_time: Callable[[], bool] | None = None
    disable_immediate: bool = False
    parallel_steps: int = 0
    attempt: int = 0
    max_attempts: int | None = None


class Host(msgspec.Struct, kw_only=True, frozen=True):
    """What the caller of a replay does for it. ``execution`` itself does no I/O.

    - ``checkpointer``: Without one, the call ends with the first step that it executes.
    - ``lease_check``: Runs before each step.
    - ``tracer``: Reports executed steps.
    - ``replace_step``: Replaces steps in tests.
    - ``threads``: Run the sync handlers of async functions, which otherwise run on the event loop.
    - ``ids``: Collects the ids of the steps reached.
    - ``clock``: Nanoseconds since the epoch, for the times of executed steps.
    - ``sent_input_bytes``: Arguments up to this size are reported with the steps.
    - ``durations``: What the function's steps have taken in this process.
    """

    hooks: Hooks | None = None
    checkpointer: Checkpointer | None = None
    lease_check: LeaseCheck | None = None
    tracer: StepTracer | None = None
    replace_step: ReplaceStep | None = None
    threads: Threads | None = None
    diagnostics: Diagnostics | None = None
    ids: StepIds = msgspec.field(default_factory=StepIds)
    clock: Callable[[], int] | None = None
    sent_input_bytes: int = 0
    durations: Durations = Durations()


class Replay:
    """The state of one call.

    - ``memos``: Memos that no step has taken, by hashed step id.
    - ``is_new``: The call has nothing to replay.
    - ``is_last_taken``: The memo that was just taken ends the replay. The newest memo ends the replay, even if older
      ones (of a lost race) were not taken. A step before a call's target was new in the call that planned it.
    - ``due``: The hashed id of the memo that ``recall`` may take; ``None`` if it must take none.
    - ``early``: The first step that was reached before others that finished earlier. See ``divergence``.
    """

    __slots__ = (
        "_executed",
        "_has_diverged",
        "_hashes",
        "_last",
        "_place",
        "_positions",
        "_reached_ids",
        "_repeats",
        "_stack",
        "_upcoming",
        "assignment",
        "checkpointer",
        "diagnostics",
        "disable_immediate",
        "due",
        "early",
        "hooks",
        "host",
        "is_last_taken",
        "is_new",
        "is_replaying",
        "memos",
        "step_memos",
        "target",
        "targets",
    )

    def __init__(self, step_memos: StepMemos, assignment: Assignment | None = None, host: Host | None = None) -> None:
        self.step_memos = step_memos
        self.assignment = assignment = assignment or Assignment()
        self.host = host = host or Host()
        self.memos = memos = step_memos.memos
        self.target = assignment.target
        self.disable_immediate = assignment.disable_immediate
        self.hooks, self.checkpointer, self.diagnostics = host.hooks, host.checkpointer, host.diagnostics
        self.is_replaying = True
        self.is_new = self.target is None and not memos
        self.is_last_taken = False
        self.targets: Collection[str] = ()
        self.early: str | None = None
        self._reached_ids: set[str] = set()
        self._repeats: dict[str, int] = {}  # the index of an id's next use, from the second on
        self._positions: dict[str, int] | None = None
        self._place = 0
        self._executed = 0
        self._has_diverged = False
        self._stack: Sequence[str] = assignment.stack
        self._hashes = host.ids.hashes
        self._upcoming: Iterator[str] = iter(())
        self.due: str | None = None
        self._last: str | None = None
        if self.target is not None:
            self._last = ""
            self.targets = dict.fromkeys((self.target, *assignment.also))
            return
        for step_id in reversed(assignment.stack):
            if step_id in memos:
                self._last = step_id
                return

    def identify(self, request: StepRequest) -> Step:
        """Number the step among those of the same id (spec §5.1.2)."""
        if self.host.replace_step is not None:
            request = self.host.replace_step(request, self.assignment.attempt)
        step_id, reached = request.step_id, self._reached_ids
        ids, index = self.host.ids, 0
        hashed_id = ids.hashes.get(step_id) or ids.learn(step_id, 0)
        if hashed_id in reached:
            index = self._repeats.get(step_id, 1)
            while (hashed_id := ids.learn(step_id, index)) in reached:  # a step has the id "a:1", and "a" is repeated
                index += 1
            self._repeats[step_id] = index + 1
        reached.add(hashed_id)
        return Step(request, hashed_id, index, len(reached))

    def position(self, hashed_id: str) -> int:
        """The position of a memo in the stack.

        A memo that the stack does not name comes last: it was fetched (spec §4.4.2), and is newer than the call.
        """
        if self._positions is None:
            self._positions = {step_id: place for place, step_id in enumerate(self._stack)}
        return self._positions.get(hashed_id, len(self._positions))

    def take(self, step: Step, *, in_order: bool) -> Memo | None:
        """Take the step's memo, so that it is returned once; ``None`` if there is none.

        With ``in_order``, the steps that finished before it must have been reached, as they were when it finished.
        """
        memos, hashed_id = self.memos, step.hashed_id
        value = memos.pop(hashed_id, None)
        if value is None:
            return None
        stack, place = self._stack, self._place
        if place < len(stack) and stack[place] == hashed_id:
            self._place = place + 1
        elif in_order and self.early is None:
            while place < len(stack) and (stack[place] in self._reached_ids or stack[place] not in memos):
                place += 1
            self._place = place
            if place < len(stack) and self.position(hashed_id) > place:
                self.early = step.request.step_id
        if self.due is not None and self.due not in memos:
            self.continue_recall()
        self.is_last_taken = not memos if self._last is None else hashed_id == self._last
        if isinstance(value, Memo):
            return value
        try:
            return decode_result(value) or Memo()  # sleeps and timeouts have null as their memo
        except msgspec.DecodeError:
            return to_rare_memo(value)

    def add(self, steps: Sequence[Step], memos: Sequence[Memo]) -> None:
        """Add memos of steps that this call has executed, in the order in which the engine has stored them."""
        added = [step.hashed_id for step in steps]
        self.memos.update(zip(added, memos, strict=True))
        self._stack = [*self._stack, *added]
        self._positions = None

    def start_recall(self) -> None:
        """Let ``recall`` take the memos in the order of the stack, except the one that ends the replay."""
        if self.host.replace_step is None and not self.step_memos.refusals and self._last is not None:
            stack = self._stack
            self._upcoming = iter(stack[: stack.index(self._last)] if self._last else stack)
            self.continue_recall()

    def continue_recall(self) -> None:
        """Set ``due`` to the next memo that no step has taken."""
        self.due = next((hashed_id for hashed_id in self._upcoming if hashed_id in self.memos), None)

    def recall(self, step_id: str) -> Memo | None:
        """``identify`` and ``take`` in one, for the first use of an id whose memo is ``due``.

        Most steps of a replay are of this kind. ``None`` for any other step, such as the last one: nothing has changed
        then.
        """
        hashed_id = self.due
        if hashed_id is None or self._hashes.get(step_id) != hashed_id:
            return None
        value = self.memos.get(hashed_id)
        if value is None:
            return None
        if not isinstance(value, Memo):
            try:
                value = decode_result(value) or Memo()
            except msgspec.DecodeError:
                return None
        self._reached_ids.add(hashed_id)
        del self.memos[hashed_id]
        self.due = next(self._upcoming, None)
        return value

    def divergence(self, found: str | None) -> Raised | None:
        """The call's outcome if the function missed a memo, else ``None``.

        The function is about to run a new step (``found``), or is at its end. A memo counts as reached if its step was
        made, even if the function abandoned it, as a race does with losers. A call for one step may end before it has
        reached all memos.
        """
        if (not self.memos and self.early is None) or self.target is not None or self._has_diverged:
            return None
        unreached = [step_id for step_id in self.memos if step_id not in self._reached_ids]
        if self.diagnostics is None or (not unreached and self.early is None):
            return None
        self._has_diverged = True
        unreached.sort(key=self.position)
        error = self.diagnostics.divergence(Divergence(unreached, found, self.early))
        return None if error is None else Raised(error)

    async def start_new_code(self) -> None:
        """End the replay: new code is about to run."""
        if self.is_replaying:
            self.is_replaying = False
            if self.hooks is not None:
                await self.hooks.unmemoized()

    def refusal(self, step: Step) -> MemoUnreadableError | None:
        """The reason why the step's memo cannot be returned."""
        reason = self.step_memos.refusals.get(step.hashed_id)
        return None if reason is None else MemoUnreadableError(f'step "{step.request.step_id}": {reason}')

    def runs_at_once(self, step: Step) -> bool:
        return step.request.op is Opcode.STEP_RUN and not self.disable_immediate

    def runs_together(self, steps: Sequence[Step]) -> bool:
        """Whether this call executes several steps that were found at once.

        Otherwise they are planned: the engine may divide them among processes, and a slow one delays no other. For
        quick steps that costs more than the steps themselves.
        """
        return (
            self._executed + len(steps) <= self.assignment.parallel_steps
            and self.target is None
            and not self.is_over
            and all(map(self.runs_at_once, steps))
            and self.host.durations.are_quick(steps)
        )

    @property
    def is_over(self) -> bool:
        """Whether the call ends before it executes another step."""
        return self.checkpointer is not None and self.checkpointer.is_over

    def plan(self, step: Step, mode: ParallelMode | None, *, among_several: bool) -> StepReport:
        """Report a step without executing it.

        ``mode`` is that of its ``group.parallel``, if any. Steps that plain asyncio found together race: the engine
        requests discovery after each of them. The same holds for a later single step: otherwise it would wait for the
        losers of the race.
        """
        if mode is None and (among_several or self.disable_immediate):
            mode = ParallelMode.RACE
        op = Opcode.STEP_PLANNED if step.request.is_run else None
        return StepReport(step.to_op(op, mode), step)

    def not_found(self, reached: Sequence[Step]) -> Raised:
        """The outcome of a call whose function did not reach the call's target.

        The function changed since the step was planned, or another branch won. Official SDKs answer in the same way.
        The engine knows the cause.
        """
        detail = (
            f'found step "{reached[0].request.step_id}" when targeting a different step'
            if reached
            else "the targeted step was not found: the function no longer reaches it"
        )
        return Raised(StepUnexpectedError(detail))

    async def execute(
        self,
        step: Step,
        mode: ParallelMode | None,
        call: Callable[[Step, Sequence[Any]], Awaitable[Any]],
    ) -> StepReport:
        """Run the step's handler. ``call`` passes the arguments, and returns the result.

        ``mode`` is that of the step's ``group.parallel``, if any. The op of the call's target repeats the mode with
        which it was planned (see ``plan``). Otherwise the official server requests no discovery after a race's branch.
        """
        if mode is None and self.target is not None:
            mode = ParallelMode.RACE
        host, request = self.host, step.request
        clock = host.clock
        if host.lease_check is not None and host.lease_check.may_be_stale:
            await apart_from_run(host.lease_check.confirm())
        self.is_replaying, was_replaying = False, self.is_replaying
        self.due = None
        self._executed += 1
        if self.hooks is not None:
            if was_replaying:
                await self.hooks.unmemoized()
            await self.hooks.before_step(step.info())
        report: StepReport | None = None
        span = None if host.tracer is None else host.tracer.begin_step(step.info())
        token = in_step.set(step)
        step.usage = []
        args = self.assignment.inputs.get(step.hashed_id, request.args)
        sent = sendable_arguments(args, host.sent_input_bytes) if args and host.sent_input_bytes else None
        began = 0 if clock is None else clock()
        try:
            output = await call(step, args)
            if request.encode is not None:
                output = request.encode(output)
            report = StepReport(step.to_op(None, mode), step, output, function_id=self.assignment.function_id)
        except NestedStep as nested:
            report = self._failed(step, mode, StepNestedError(str(nested)))
        except (Exception, SystemExit) as error:
            report = self._failed(step, mode, raised_by_user(error))
        finally:
            in_step.reset(token)
            usage, step.usage = step.usage or [], None
            if span is not None:
                span.ended(None if report is None else report.error, is_cut=report is None, usage=usage)
        assert report is not None
        if usage:
            report.op.metadata = usage_metadata(usage)
        if clock is not None:
            report.op.timing = Timing(began, clock() - began)
            if step.nanoseconds is None:
                step.nanoseconds = report.op.timing.b
        if mode is ParallelMode.WAIT and self.target is None:
            # A call for the step itself is known to be one of several. This call is not.
            report.op.opts = {**(report.op.opts or {}), PARALLEL_MODE_OPT: mode.value}
        if sent is not None and report.op.op != Opcode.STEP_ERROR:
            report.op.opts = {**(report.op.opts or {}), STEP_INPUT_OPT: sent}
        if self.hooks is not None:
            await self.hooks.after_step(report)
        return report

    def _failed(self, step: Step, mode: ParallelMode | None, error: Exception) -> StepReport:
        most = self.assignment.max_attempts
        is_last = most is not None and self.assignment.attempt + 1 >= most
        op = Opcode.STEP_FAILED if is_last or not is_retriable(error) else Opcode.STEP_ERROR
        return StepReport(step.to_op(op, mode), step, error=error)


async def apart_from_run(work: Awaitable[T]) -> T:
    """Await work whose tasks do not belong to the run."""
    token = current_tracker.set(None)
    try:
        return await work
    finally:
        current_tracker.reset(token)


def value_of(memo: Memo, decode: Callable[[Any], Any] | None) -> Any:
    """A step's result. Raises ``StepError`` for a step that failed."""
    if (error := memo.error) is not None:
        raise StepError(error.message or "", error.name or "Error", error.stack, error.code)
    return memo.data if decode is None else decode(memo.data)


def nested(request: StepRequest, outer: Step) -> NestedStep:
    """The error to raise if a handler is running."""
    return NestedStep(
        f'step "{request.step_id}" was called inside step "{outer.request.step_id}"; nested steps are not '
        "supported: call it from the function, or make it ordinary code"
    )


def raised_by_user(error: Exception | SystemExit) -> Exception:
    """An error of a function or handler, with a traceback that begins in its code.

    ``sys.exit`` counts as an ordinary error. Otherwise it would end the server's process.
    """
    while (tb := error.__traceback__) is not None and os.path.dirname(tb.tb_frame.f_code.co_filename) == _OWN_CODE:
        error.__traceback__ = tb.tb_next
    if not isinstance(error, SystemExit):
        return error
    wrapped = RuntimeError(f"sys.exit({error.code!r}) was called, which durable functions must not do: return or raise")
    return wrapped.with_traceback(error.__traceback__)
