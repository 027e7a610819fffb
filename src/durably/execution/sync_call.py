"""A call of a sync function: the first step without a memo ends it."""

import inspect
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from durably.protocol.errors import Error, ErrorCode
from durably.protocol.opcodes import ParallelMode

from .replay import (
    Checkpointed,
    Ending,
    FoundSteps,
    Raised,
    Replay,
    Returned,
    in_step,
    nested,
    raised_by_user,
    value_of,
)
from .step import Memo, Step, StepReport, StepRequest

T = TypeVar("T")


class AsyncUnsupportedError(Error):
    code = ErrorCode.ASYNC_UNSUPPORTED
    is_retriable = False


class _Interrupt(BaseException):
    """Leaves the function: the call has its outcome."""


class _Skipped(BaseException):
    """A branch of ``group.parallel`` has reached a step without a memo.

    The others continue.
    """


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, in this thread, without an event loop.

    Decisions are written once, as coroutines over a small I/O interface. With an interface that blocks instead of
    waiting, this function runs them.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()
    raise RuntimeError("a coroutine driven without an event loop tried to wait for one")


@dataclass(slots=True)
class _Group:
    """A running ``group.parallel``.

    It has the steps found in it, and whether a branch stopped at a step, found or skipped. ``executes``: the call may
    execute the steps of all branches.
    """

    mode: ParallelMode
    executes: bool
    found: list[StepReport] = field(default_factory=list)
    is_waiting: bool = False


class SyncCall:
    """One call of one sync function."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self.recall = replay.recall
        self._outcome: Ending | None = None
        self._executed: list[StepReport] = []
        self._group: _Group | None = None
        self._branches = Branches()
        self._branch_count = 0

    def run(self, function: Callable[[], Any]) -> Ending:
        """Run the function until it or the call ends."""
        replay = self._replay
        if replay.is_new:
            drive(replay.start_new_code())
        replay.start_recall()
        outer_step = in_step.set(None)  # an enclosing run must not leak into this one
        try:
            value = function()
            if inspect.isawaitable(value):
                _discard(value)
                raise AsyncUnsupportedError("a sync function returned an awaitable: make the function async")
            returned: Ending = replay.divergence(None) or Returned(value)
        except (_Interrupt, _Skipped):
            returned = Raised(RuntimeError("the call was interrupted without an outcome"))
        except (Exception, SystemExit) as error:
            returned = Raised(raised_by_user(error))
        finally:
            in_step.reset(outer_step)
        # A function that swallows the interrupt continues, but the call has its outcome.
        if replay.is_replaying:
            drive(replay.start_new_code())
        return self._outcome if self._outcome is not None else returned

    def step(self, request: StepRequest) -> Any:
        """Return the step's memo, or leave the function."""
        if self._outcome is not None:
            raise _Interrupt
        if (outer := in_step.get()) is not None:
            raise nested(request, outer)
        replay = self._replay
        if self._group is not None or self._branches.abandoned:
            try:
                self._branches.meet(request.step_id)
            except StepIdAmbiguousError as error:
                self._end(Raised(error))
        step = replay.identify(request)
        memo = replay.take(step, in_order=self._group is None)
        if memo is None:
            memo = self._meet(step)
        elif replay.step_memos.refusals and (refusal := replay.refusal(step)) is not None:
            self._end(Raised(refusal))
        elif replay.is_last_taken and replay.is_replaying:
            try:
                drive(replay.start_new_code())
            except Exception as error:  # Error of a middleware hook, which the function cannot catch.
                self._end(Raised(error))
        return value_of(memo, step.request.decode)

    def _check_reached(self, found: str) -> None:
        if (diverged := self._replay.divergence(found)) is not None:
            self._end(diverged)

    def _meet(self, step: Step) -> Memo:
        """End the call at a step without a memo.

        In a group, end this branch's part of the call. If the step can be executed and stored in a checkpoint, return
        its memo instead.
        """
        replay, group = self._replay, self._group
        if step.hashed_id in replay.targets:
            self._meet_target(step)
        if group is None:
            if replay.target is not None:
                self._end(replay.not_found([step]))
            self._check_reached(step.request.step_id)
            if replay.runs_at_once(step):
                if replay.is_over:
                    self._end(Checkpointed())
                return self._execute(step)
            self._end(FoundSteps([replay.plan(step, None, among_several=False)]))
        group.is_waiting = True
        if group.executes and not replay.memos and self._has_time() and replay.runs_together([step]):
            self._execute_among_others(step)
        elif replay.target is None:
            group.found.append(replay.plan(step, group.mode, among_several=True))
        raise _Skipped

    def _meet_target(self, step: Step) -> NoReturn:
        """Execute the step.

        Further targets of the call follow if they are in the same group and there is time.
        """
        replay = self._replay
        if step.request.is_run:
            self._execute_among_others(step)
        else:
            self._executed.append(replay.plan(step, self._mode, among_several=False))
        if self._group is None or len(self._executed) == len(replay.targets) or not self._has_time():
            self._end(FoundSteps(self._executed))
        self._group.is_waiting = True
        raise _Skipped

    def _execute_among_others(self, step: Step) -> None:
        """Run the handler of one of several steps, which the call reports together."""
        try:
            report = drive(self._replay.execute(step, self._mode, _call_handler))
        except Exception as error:  # error of a middleware hook
            self._end(Raised(error))
        self._replay.host.durations.note([report])
        self._executed.append(report)

    def _has_time(self) -> bool:
        has_time = self._replay.assignment.has_time
        return has_time is None or has_time()

    @property
    def _mode(self) -> ParallelMode | None:
        return self._group.mode if self._group is not None else None

    def _execute(self, step: Step) -> Memo:
        """Run the step's handler.

        This ends the call unless a checkpoint can store the step.
        """
        replay, checkpointer = self._replay, self._replay.checkpointer
        try:
            report = drive(replay.execute(step, self._mode, _call_handler))
            replay.host.durations.note([report])
            memo = None if checkpointer is None else drive(checkpointer.take(report))
        except Exception as error:  # error of a middleware hook
            ending: Ending = Raised(error)
        else:
            if memo is not None:
                return memo
            ending = FoundSteps([report]) if checkpointer is None else Checkpointed()
        self._end(ending)

    def parallel(self, callables: Sequence[Callable[[], T]], mode: ParallelMode) -> tuple[T, ...]:
        """Run each callable to its end or to its first step without a memo.

        Those steps are reported together. If a callable raises, the others run anyway, so that their steps are
        numbered. Then the first error is raised.
        """
        outer, due = self._group, self._replay.due
        self._replay.due = None
        self._branch_count += len(callables)
        executes = (outer is None or outer.executes) and self._branch_count <= self._replay.assignment.parallel_steps
        group = self._group = _Group(mode, executes)
        outputs: list[T] = []
        errors: list[Exception] = []
        try:
            for number, function in enumerate(callables):
                with self._branches.branch(number, mode):
                    try:
                        outputs.append(function())
                    except _Skipped:
                        pass
                    except Exception as error:
                        errors.append(error)
        finally:
            self._group = outer
            self._branches.end_group(abandoned=bool(errors))
        if self._executed and (outer is None or self._replay.target is not None):
            self._end(FoundSteps([*self._executed, *group.found]))
        if errors:
            raise errors[0]
        if not group.is_waiting:
            if due is not None:
                self._replay.continue_recall()
            return tuple(outputs)
        if outer is not None:
            outer.is_waiting = True
            outer.found += group.found
            raise _Skipped
        if self._replay.target is not None:
            self._end(self._replay.not_found([]))
        self._check_reached(group.found[0].step_id)
        self._end(FoundSteps(group.found))

    def _end(self, ending: Ending) -> NoReturn:
        self._outcome = ending
        self._replay.due = None
        raise _Interrupt


async def _call_handler(step: Step, args: Sequence[Any]) -> Any:
    assert step.request.handler is not None
    value = step.request.handler(*args, **step.request.kwargs)
    if inspect.isawaitable(value):
        _discard(value)
        raise AsyncUnsupportedError(
            "a sync function's step was given a coroutine function: make the function async, or the step's handler sync"
        )
    return value


def _discard(value: Any) -> None:
    if inspect.iscoroutine(value):
        value.close()


class StepIdAmbiguousError(Error):
    """A step's id repeats across branches of a sync function.

    The function cannot distinguish these steps.
    """

    code = ErrorCode.STEP_ID_AMBIGUOUS
    is_retriable = False
    include_stack = False


@dataclass(slots=True)
class _Branch:
    """A branch that is running.

    ``level`` counts the steps and groups that it has reached.
    """

    index: int
    mode: ParallelMode
    level: int = 0
    has_groups: bool = False


@dataclass(slots=True)
class _Uses:
    """The uses of an id in a group.

    ``keeps_step``: each use advances only when all branches do.
    """

    paths: set[tuple[int, ...]] = field(default_factory=set)
    levels: set[tuple[int, ...]] = field(default_factory=set)
    keeps_step: bool = True

    @property
    def is_ambiguous(self) -> bool:
        if len(self.paths) < 2:
            return False
        are_first = not any(map(any, self.levels))
        return not are_first and not (self.keeps_step and len(self.levels) == 1)


class Branches:
    """The branches that a sync call is in, and the ids used in them."""

    def __init__(self) -> None:
        self._path: list[_Branch] = []
        self._uses: dict[str, _Uses] = {}
        self.abandoned: set[str] = set()
        """Ids in groups that an error ended. Their other branches may continue after the function."""

    @contextmanager
    def branch(self, index: int, mode: ParallelMode) -> Iterator[None]:
        self._path.append(_Branch(index, mode))
        try:
            yield
        finally:
            self._path.pop()

    def end_group(self, *, abandoned: bool) -> None:
        """End a group. ``abandoned``: an error ended it."""
        if self._path:
            self._path[-1].level += 1
            self._path[-1].has_groups = True
            return
        if abandoned:
            self.abandoned.update(step_id for step_id, uses in self._uses.items() if any(map(any, uses.levels)))
        self._uses.clear()

    def meet(self, step_id: str) -> None:
        """Record the use of an id. Raises ``StepIdAmbiguousError``."""
        if not self._path:
            if step_id in self.abandoned:
                raise _ambiguous(step_id)
            return
        innermost = self._path[-1]
        uses = self._uses.setdefault(step_id, _Uses())
        uses.paths.add(tuple(branch.index for branch in self._path))
        uses.levels.add(tuple(branch.level for branch in self._path))
        if len(self._path) > 1 or innermost.has_groups or innermost.mode is not ParallelMode.WAIT:
            uses.keeps_step = False
        innermost.level += 1
        if uses.is_ambiguous:
            raise _ambiguous(step_id)


def _ambiguous(step_id: str) -> StepIdAmbiguousError:
    return StepIdAmbiguousError(
        f'step id "{step_id}" repeats across branches of group.parallel, where a sync function cannot distinguish the '
        f'steps: give each branch ids of its own, such as f"{step_id}-{{number}}", or make the function async'
    )
