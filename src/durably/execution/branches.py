"""Which ids may repeat across the branches of a sync function's ``group.parallel``.

Repetitions of an id are numbered as they are met, and a sync function meets its steps branch by branch: a branch
that has got further meets more of them than it did in the calls before, and would shift the numbers of those in the
branches after it. The numbers hold where that cannot happen: for the first steps of branches, and, while an engine
waits for all branches (``ParallelMode.WAIT``), for steps in the same place of each. Elsewhere a repeated id is
refused, since a step would be given another's result. (Async functions number steps in the order of the stack.)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from durably.protocol.errors import Error, ErrorCode
from durably.protocol.opcodes import ParallelMode


class StepIdAmbiguousError(Error):
    """A step's id repeats across branches in a way in which a sync function cannot tell its steps apart."""

    code = ErrorCode.STEP_ID_AMBIGUOUS
    is_retriable = False
    include_stack = False


@dataclass(slots=True)
class _Branch:
    """A branch that is being run; ``level`` counts the steps and groups that it has met."""

    index: int
    mode: ParallelMode
    level: int = 0
    has_groups: bool = False


@dataclass(slots=True)
class _Uses:
    """Where an id is used in a group. ``keeps_step``: each use moves on only when all branches do."""

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
        self._abandoned: set[str] = set()

    @property
    def has_abandoned(self) -> bool:
        return bool(self._abandoned)

    @contextmanager
    def branch(self, index: int, mode: ParallelMode) -> Iterator[None]:
        self._path.append(_Branch(index, mode))
        try:
            yield
        finally:
            self._path.pop()

    def end_group(self, *, abandoned: bool) -> None:
        """``abandoned``: an error ended the group, and its other branches may yet go on behind the function's back."""
        if self._path:
            self._path[-1].level += 1
            self._path[-1].has_groups = True
            return
        if abandoned:
            self._abandoned.update(step_id for step_id, uses in self._uses.items() if any(map(any, uses.levels)))
        self._uses.clear()

    def meet(self, step_id: str) -> None:
        """Raises ``StepIdAmbiguousError``."""
        if not self._path:
            if step_id in self._abandoned:
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
        f'step id "{step_id}" repeats across branches of group.parallel, where a sync function cannot tell the steps '
        f'apart: give each branch ids of its own, such as f"{step_id}-{{number}}", or make the function async'
    )
