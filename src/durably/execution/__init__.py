"""Replay of one call of a function.

A call runs the function from its top. Steps that have a memo return it; the first steps that have none end the call,
executed or reported as ops (spec §5). ``AsyncCall`` and ``SyncCall`` run the two kinds of functions, and ``Replay``
decides for both. Nothing here does I/O, starts a thread, reads the clock or the environment: a call gets these from
outside, as ``Hooks``, ``Checkpointer`` and ``Threads``.
"""

from .async_call import AsyncCall, running_step
from .memos import Divergence, Memo, ReplayDivergedError, StepIdUnstableError, StepMemos, take_inputs
from .replay import (
    Checkpointed,
    Checkpointer,
    Ending,
    FoundSteps,
    Hooks,
    LeaseCheck,
    Outcome,
    Raised,
    Replay,
    Returned,
    StepSpan,
    StepTracer,
    Threads,
    in_step,
)
from .step import ReplaceStep, StepInfo, StepReport, StepRequest, is_async
from .sync_call import SyncCall, drive

__all__ = [
    "AsyncCall",
    "Checkpointed",
    "Checkpointer",
    "Divergence",
    "Ending",
    "FoundSteps",
    "Hooks",
    "LeaseCheck",
    "Memo",
    "Outcome",
    "Raised",
    "ReplaceStep",
    "Replay",
    "ReplayDivergedError",
    "Returned",
    "StepIdUnstableError",
    "StepInfo",
    "StepMemos",
    "StepReport",
    "StepRequest",
    "StepSpan",
    "StepTracer",
    "SyncCall",
    "Threads",
    "drive",
    "in_step",
    "is_async",
    "running_step",
    "take_inputs",
]
