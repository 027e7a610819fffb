"""Replaying one call of a function.

A call runs the function from its top. Steps that have a memo return it; the first steps that have none
end the call, executed or reported as ops (spec §5). ``AsyncCall`` and ``SyncCall`` do that for the two
kinds of functions; what they decide by stands in ``replay``. Nothing here does I/O, starts a thread, reads
the clock or the environment: what a call needs of the outside is handed in as ``Hooks`` and ``Handover``.
"""

from .async_call import AsyncCall, running_step
from .handlers import is_async
from .memos import Divergence, Memo, ReplayDivergedError, StepIdUnstableError, StepMemos
from .outcome import Ending, Found, HandedOver, Outcome, Raised, Returned, StepReport
from .replay import Handover, Hooks, Replay, Standing, Threads, in_step
from .step import StandIn, StepInfo, StepRequest, as_is
from .sync_call import SyncCall, drive

__all__ = [
    "AsyncCall",
    "Divergence",
    "Ending",
    "Found",
    "HandedOver",
    "Handover",
    "Hooks",
    "Memo",
    "Outcome",
    "Raised",
    "Replay",
    "ReplayDivergedError",
    "Returned",
    "StandIn",
    "Standing",
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
