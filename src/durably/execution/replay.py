"""What a call knows and decides, whatever kind of function it runs.

Which memo a step gets, which step is the call's target, whether a found step is executed at once, and how
the result of an executed step is reported (spec §5.1.3, §5.3.1, §5.4).
"""

import os.path
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, TypeVar

from durably.protocol.errors import Error, ErrorCode, StepError, is_retriable
from durably.protocol.opcodes import Opcode, ParallelMode, hash_step_id

from .memos import Divergence, Memo, MemoUnreadableError, StepMemos
from .outcome import Checkpointed, Ending, Found, Raised, StepReport
from .step import StandIn, Step, StepInfo, StepRequest
from .tasks import current_tracker

T = TypeVar("T")

_OWN_CODE = os.path.dirname(__file__)

in_step: ContextVar[Step | None] = ContextVar("durably_in_step", default=None)
"""The step whose handler is running: a step inside it is an error, a task made in it is not the run's."""


class StepNestedError(Error):
    code = ErrorCode.STEP_NESTED
    is_retriable = False
    include_stack = False


class StepUnexpectedError(Error):
    """A call targets a step that the function does not reach."""

    code = ErrorCode.STEP_UNEXPECTED
    include_stack = False


class NestedStep(BaseException):
    """Leaves a handler that called a step; a ``BaseException`` so that the handler does not swallow it."""


class Hooks(Protocol):
    """Where a call reports its progress to middleware. Each may do I/O; ``execution`` itself does none."""

    async def unmemoized(self) -> None:
        """All memos are returned, or a step without one is met: new code is about to run. Called once."""

    async def before_step(self, step: StepInfo) -> None: ...

    async def after_step(self, report: StepReport) -> None: ...


class Checkpointer(Protocol):
    """Receives the steps that a call has executed, so that its function continues at once (spec §10)."""

    @property
    def is_over(self) -> bool:
        """Whether the call must execute no further step."""
        ...

    async def take(self, report: StepReport) -> Memo | None:
        """Store an executed step. Returns its memo, or ``None`` if the call must end."""
        ...


class Threads(Protocol):
    """Where sync handlers of async functions run."""

    async def run(self, step: StepInfo, work: Callable[[], T]) -> T:
        """Call ``work``, which never raises, without blocking the event loop."""
        ...


class LeaseCheck(Protocol):
    """Checks that the engine has not given the call up."""

    @property
    def may_be_stale(self) -> bool: ...

    async def confirm(self) -> None:
        """Ask the engine. Raises if the call must end."""
        ...


class Findings(Protocol):
    """Where a call reports what is perhaps wrong with its function."""

    def small_duration(self, step_id: str, milliseconds: int) -> None:
        """The step's duration is perhaps meant in seconds."""

    def divergence(self, divergence: Divergence) -> Error | None:
        """The function does not reach all memos. The error, if any, ends the call."""

    def left_steps(self, step_ids: Sequence[str]) -> None:
        """The function returned without these steps, which are in tasks that nothing has awaited."""


@dataclass(slots=True)
class Replay:
    """The state of one call.

    ``stack`` gives the order in which the memos were made; ``target`` is the hashed id of the only step to
    execute, ``None`` to discover. ``also`` are further steps that the same call may execute, one after another, as long
    as it ``has_time``. ``attempt`` counts from 0. Without a ``checkpointer`` the call ends with the first step that it
    executes. ``lease_check`` runs before each step. ``stand_in`` replaces steps in tests. ``threads`` run the sync
    handlers of async functions, which otherwise run on the event loop. ``names`` collects the ids of the steps reached,
    by hashed id.
    """

    memos: StepMemos
    hooks: Hooks | None = None
    checkpointer: Checkpointer | None = None
    stack: Sequence[str] = ()
    target: str | None = None
    also: Sequence[str] = ()
    has_time: Callable[[], bool] = lambda: True
    disable_immediate: bool = False
    attempt: int = 0
    max_attempts: int | None = None
    lease_check: LeaseCheck | None = None
    stand_in: StandIn | None = None
    threads: Threads | None = None
    function_id: str = ""
    names: dict[str, str] = field(default_factory=dict)
    findings: Findings | None = None
    is_replaying: bool = True
    targets: Collection[str] = ()
    _counts: dict[str, int] = field(default_factory=dict)
    _met: int = 0
    _positions: dict[str, int] | None = None
    _last: str | None = None
    _met_ids: set[str] = field(default_factory=set)
    _place: int = 0
    _early: str | None = None
    _has_diverged: bool = False

    def __post_init__(self) -> None:
        if self.target is not None:
            self._last = ""
            self.targets = dict.fromkeys((self.target, *self.also))
        else:
            self._last = next((step_id for step_id in reversed(self.stack) if step_id in self.memos), None)

    @property
    def is_new(self) -> bool:
        """Whether the call has nothing to replay."""
        return self.target is None and not self.memos

    def identify(self, request: StepRequest) -> Step:
        """Number the step among those of the same id (spec §5.1.2)."""
        if self.stand_in is not None:
            request = self.stand_in(request, self.attempt)
        if request.small_duration is not None and self.findings is not None:
            self.findings.small_duration(request.step_id, request.small_duration)
        index = self._counts.get(request.step_id, 0)
        self._counts[request.step_id] = index + 1
        self._met += 1
        hashed_id = hash_step_id(request.step_id, index)
        self._met_ids.add(hashed_id)
        self.names[hashed_id] = request.step_id
        return Step(request, hashed_id, index, self._met)

    def position(self, hashed_id: str) -> int:
        """Where in the stack a memo stands; those the stack does not name come last."""
        if self._positions is None:
            self._positions = {step_id: place for place, step_id in enumerate(self.stack)}
        return self._positions.get(hashed_id, len(self._positions))

    def take(self, step: Step, *, in_order: bool) -> Memo | None:
        """Take the step's memo; ``None`` if there is none.

        With ``in_order``, the steps that finished before it must have been made, as they had been when it finished.
        """
        memo = self.memos.pop(step.hashed_id)
        if in_order and memo is not None and self._early is None:
            stack, place = self.stack, self._place
            while place < len(stack) and (stack[place] in self._met_ids or stack[place] not in self.memos):
                place += 1
            self._place = place
            if place < len(stack) and self.position(step.hashed_id) > place:
                self._early = step.request.step_id
        return memo

    def divergence(self, found: str | None) -> Raised | None:
        """How the call ends if the function, about to run a new step or at its end, did not reach all memos.

        A memo whose step was made is reached, even if the function abandoned it, as a race does with losers. A call
        for one step may end before it has reached all memos.
        """
        if (not self.memos and self._early is None) or self.target is not None or self._has_diverged:
            return None
        unreached = [step_id for step_id in self.memos.ids() if step_id not in self._met_ids]
        if self.findings is None or (not unreached and self._early is None):
            return None
        self._has_diverged = True
        unreached.sort(key=self.position)
        error = self.findings.divergence(Divergence(unreached, found, self._early))
        return None if error is None else Raised(error)

    def is_last(self, step: Step) -> bool:
        """Whether a step whose memo was just taken ends the replay.

        The memo that was made last does, also where the function leaves others aside (a lost race's). What stands
        before a call's target was new in the call that planned it.
        """
        return not self.memos if self._last is None else step.hashed_id == self._last

    async def start_new_code(self) -> None:
        """From here on new code runs."""
        if self.is_replaying:
            self.is_replaying = False
            if self.hooks is not None:
                await self.hooks.unmemoized()

    def refusal(self, step: Step) -> MemoUnreadableError | None:
        """The reason why the step's memo cannot be returned."""
        reason = self.memos.refusals.get(step.hashed_id)
        return None if reason is None else MemoUnreadableError(f'step "{step.request.step_id}": {reason}')

    def value(self, step: Step, memo: Memo) -> Any:
        """What the step returns, or the error it raises."""
        if (error := memo.error) is not None:
            raise StepError(error.message or "", error.name or "Error", error.stack, error.code)
        return step.request.decode(memo.data)

    def runs_at_once(self, step: Step) -> bool:
        return step.request.is_run and not self.disable_immediate

    @property
    def is_over(self) -> bool:
        """Whether the call ends before it executes another step."""
        return self.checkpointer is not None and self.checkpointer.is_over

    async def conclude(self, report: StepReport) -> Memo | Ending:
        """After a step was executed: the memo with which the function goes on, or how the call ends."""
        if self.checkpointer is None:
            return Found([report])
        memo = await self.checkpointer.take(report)
        return Checkpointed() if memo is None else memo

    def plan(self, step: Step, mode: ParallelMode | None, *, among_several: bool) -> StepReport:
        """Report a step without executing it. ``mode`` is that of its ``group.parallel``, if any.

        Steps that plain asyncio found together race: the engine asks for discovery after each of them. So does a
        step alone once steps were parallel, or it would wait for those that lost a race and are still under way.
        """
        if mode is None and (among_several or self.disable_immediate):
            mode = ParallelMode.RACE
        op = Opcode.STEP_PLANNED if step.request.is_run else None
        return StepReport(step.to_op(op, mode), step.info())

    def mode_of_target(self, mode: ParallelMode | None) -> ParallelMode | None:
        """The mode with which the call's target was planned, to be repeated on its op (see ``plan``).

        Without it, the official server asks for no discovery after a race's branch.
        """
        return ParallelMode.RACE if mode is None and self.target is not None else mode

    def not_found(self, met: Sequence[Step]) -> Raised:
        """The function did not reach the call's target: it changed since the step was planned, or another branch won.

        Official SDKs answer in the same way. The engine knows the cause.
        """
        detail = (
            f'found step "{met[0].request.step_id}" when targeting a different step'
            if met
            else "the targeted step was not found: the function no longer reaches it"
        )
        return Raised(StepUnexpectedError(detail))

    async def execute(
        self,
        step: Step,
        mode: ParallelMode | None,
        call: Callable[[Step, Sequence[Any]], Awaitable[Any]],
    ) -> StepReport:
        """Run the step's handler: ``call`` passes the arguments, and returns the result. ``mode`` is that of
        the step's ``group.parallel``, if any."""
        mode = self.mode_of_target(mode)
        request = step.request
        if self.lease_check is not None and self.lease_check.may_be_stale:
            await apart_from_run(self.lease_check.confirm())
        await self.start_new_code()
        if self.hooks is not None:
            await self.hooks.before_step(step.info())
        token = in_step.set(step)
        try:
            replaced = self.memos.input_of(step.hashed_id)
            args = request.args if replaced is None else replaced
            output = await call(step, args)
            output = request.encode(output)
            report = StepReport(step.to_op(None, mode), step.info(), output=output, function_id=self.function_id)
        except NestedStep as nested:
            report = self._failed(step, mode, StepNestedError(str(nested)))
        except (Exception, SystemExit) as error:
            report = self._failed(step, mode, raised_by_user(error))
        finally:
            in_step.reset(token)
        if self.hooks is not None:
            await self.hooks.after_step(report)
        return report

    def _failed(self, step: Step, mode: ParallelMode | None, error: Exception) -> StepReport:
        is_last = self.max_attempts is not None and self.attempt + 1 >= self.max_attempts
        op = Opcode.STEP_FAILED if is_last or not is_retriable(error) else Opcode.STEP_ERROR
        return StepReport(step.to_op(op, mode), step.info(), error=error)


async def apart_from_run(work: Awaitable[T]) -> T:
    """Tasks that are made for it are not the run's."""
    token = current_tracker.set(None)
    try:
        return await work
    finally:
        current_tracker.reset(token)


def refuse_nested(request: StepRequest) -> None:
    """Raises ``NestedStep`` if a handler is running."""
    if (outer := in_step.get()) is not None:
        raise NestedStep(
            f'step "{request.step_id}" was called inside step "{outer.request.step_id}"; nested steps are not '
            "supported: call it from the function, or make it ordinary code"
        )


def raised_by_user(error: Exception | SystemExit) -> Exception:
    """What a function or handler raised, with a traceback that begins in its code.

    ``sys.exit`` is an error like any other: it would end the server's process, and all that runs in it.
    """
    error.__traceback__ = _without_own_frames(error.__traceback__)
    if not isinstance(error, SystemExit):
        return error
    wrapped = RuntimeError(f"sys.exit({error.code!r}) was called, which durable functions must not do: return or raise")
    return wrapped.with_traceback(error.__traceback__)


def _without_own_frames(tb: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is the user's."""
    while tb is not None and os.path.dirname(tb.tb_frame.f_code.co_filename) == _OWN_CODE:
        tb = tb.tb_next
    return tb
