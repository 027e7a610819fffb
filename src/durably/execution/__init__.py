"""Replaying one call of a function.

A call runs the function from its top. Steps that have a memo return it; the first steps that have none
end the call, executed or reported as ops (spec §5). ``AsyncCall`` and ``SyncCall`` do that for the two
kinds of functions; what they decide by stands in ``replay``. Nothing here does I/O, starts a thread, reads
the clock or the environment: a call gets what it needs from outside as ``Hooks`` and ``Checkpointer``.
"""

from .async_call import AsyncCall, running_step
from .handlers import is_async
from .memos import Divergence, Memo, ReplayDivergedError, StepIdUnstableError, StepMemos
from .outcome import Checkpointed, Ending, Found, Outcome, Raised, Returned, StepReport
from .replay import Checkpointer, Hooks, LeaseCheck, Replay, Threads, in_step
from .step import StandIn, StepInfo, StepRequest, as_is
from .sync_call import SyncCall, drive

__all__ = [
    "AsyncCall",
    "Checkpointed",
    "Checkpointer",
    "Divergence",
    "Ending",
    "Found",
    "Hooks",
    "LeaseCheck",
    "Memo",
    "Outcome",
    "Raised",
    "Replay",
    "ReplayDivergedError",
    "Returned",
    "StandIn",
    "StepIdUnstableError",
    "StepInfo",
    "StepMemos",
    "StepReport",
    "StepRequest",
    "SyncCall",
    "Threads",
    "as_is",
    "drive",
    "in_step",
    "is_async",
    "running_step",
]
