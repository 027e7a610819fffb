"""Replay of one call of a function.

A call runs the function from its top. Steps with a memo return it. The first steps without a memo end the call,
executed or reported as ops (spec §5). ``AsyncCall`` and ``SyncCall`` run the two kinds of functions, and ``Replay``
decides for both. This package does no I/O, starts no thread, and reads neither clock nor environment. ``Hooks``,
``Checkpointer`` and ``Threads`` do so for a call.
"""

from .async_call import AsyncCall, running_step
from .replay import (
    Assignment,
    Checkpointed,
    Checkpointer,
    Ending,
    FoundSteps,
    Hooks,
    Host,
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
from .step import (
    Divergence,
    Memo,
    ReplaceStep,
    ReplayDivergedError,
    StepIdUnstableError,
    StepInfo,
    StepMemos,
    StepReport,
    StepRequest,
    is_async,
    take_inputs,
)
from .sync_call import SyncCall, drive

__all__ = [
    "Assignment",
    "AsyncCall",
    "Checkpointed",
    "Checkpointer",
    "Divergence",
    "Ending",
    "FoundSteps",
    "Hooks",
    "Host",
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
