"""What a step asks for: its op, its options, and how to make a value of its memo."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from durably.protocol.opcodes import Op, Opcode, ParallelMode, Userland


def as_is(data: Any) -> Any:
    """The conversion of a step whose values are JSON values."""
    return data


class StepRequest(msgspec.Struct):
    """A step as user code asked for it. One is made for each step of each call, so it must be cheap to make.

    ``handler`` is called for steps that run in the app (op ``StepRun``); ``decode`` converts the memo's data to the
    step's result, ``encode`` converts the handler's result to the memo's data. ``small_duration`` is the step's
    duration in milliseconds, if it is a number that was perhaps meant in seconds.
    """

    step_id: str
    op: Opcode
    name: str | None = None
    opts: Mapping[str, Any] | None = None
    handler: Callable[..., Any] | None = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    decode: Callable[[Any], Any] = as_is
    encode: Callable[[Any], Any] = as_is
    small_duration: int | None = None

    @property
    def is_run(self) -> bool:
        return self.op is Opcode.STEP_RUN

    def call(self, args: Sequence[Any]) -> Any:
        """The handler's output, or an awaitable of it."""
        assert self.handler is not None
        return self.handler(*args, **self.kwargs)


StandIn = Callable[[StepRequest, int], StepRequest]
"""What a step is to be in place of what user code asked for, at an attempt (from 0): the same, or one of the same
``step_id`` made up for a test."""


@dataclass(slots=True, frozen=True)
class StepInfo:
    """A step as middleware sees it. ``id`` is the user's own; ``index`` counts repetitions of it from 0."""

    id: str
    op: Opcode
    opts: Mapping[str, Any] | None = None
    index: int = 0
    hashed_id: str = ""


class Step(msgspec.Struct):
    """A step that a call met: the request, which repetition of its id it is, and its place among all steps met."""

    request: StepRequest
    hashed_id: str
    index: int
    order: int

    def info(self) -> StepInfo:
        return StepInfo(self.request.step_id, self.request.op, self.request.opts, self.index, self.hashed_id)

    def to_op(self, op: Opcode | None = None, parallel_mode: ParallelMode | None = None) -> Op:
        opts = dict(self.request.opts) if self.request.opts else {}
        if parallel_mode is ParallelMode.RACE:
            opts["parallelMode"] = ParallelMode.RACE.value
        return Op(
            id=self.hashed_id,
            op=op or self.request.op,
            name=self.request.name or self.request.step_id,
            display_name=self.request.step_id,
            opts=opts or None,
            userland=Userland(id=self.request.step_id, index=self.index or None),
        )
