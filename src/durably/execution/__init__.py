"""Replay of one call of a function.

A call runs the function from its top. Steps with a memo return it. The first steps without a memo end the call,
executed or reported as ops (spec §5). ``AsyncCall`` and ``SyncCall`` run the two kinds of functions, and ``Replay``
decides for both. This package does no I/O, starts no thread, and reads neither clock nor environment. ``Hooks``,
``Checkpointer`` and ``Threads`` do so for a call.
"""

from .async_call import AsyncCall as AsyncCall
from .async_call import running_step as running_step
from .replay import (
    Assignment as Assignment,
)
from .replay import (
    Checkpointed as Checkpointed,
)
from .replay import (
    Checkpointer as Checkpointer,
)
from .replay import (
    Ending as Ending,
)
from .replay import (
    FoundSteps as FoundSteps,
)
from .replay import (
    Hooks as Hooks,
)
from .replay import (
    Host as Host,
)
from .replay import (
    LeaseCheck as LeaseCheck,
)
from .replay import (
    Outcome as Outcome,
)
from .replay import (
    Raised as Raised,
)
from .replay import (
    Replay as Replay,
)
from .replay import (
    Returned as Returned,
)
from .replay import (
    StepSpan as StepSpan,
)
from .replay import (
    StepTracer as StepTracer,
)
from .replay import (
    Threads as Threads,
)
from .replay import (
    in_step as in_step,
)
from .replay import (
    nested as nested,
)
from .replay import (
    value_of as value_of,
)
from .step import (
    Divergence as Divergence,
)
from .step import (
    Durations as Durations,
)
from .step import (
    Memo as Memo,
)
from .step import (
    ReplaceStep as ReplaceStep,
)
from .step import (
    ReplayDivergedError as ReplayDivergedError,
)
from .step import (
    StepIds as StepIds,
)
from .step import (
    StepIdUnstableError as StepIdUnstableError,
)
from .step import (
    StepInfo as StepInfo,
)
from .step import (
    StepMemos as StepMemos,
)
from .step import (
    StepReport as StepReport,
)
from .step import (
    StepRequest as StepRequest,
)
from .step import (
    is_async as is_async,
)
from .step import (
    take_inputs as take_inputs,
)
from .sync_call import SyncCall as SyncCall
from .sync_call import drive as drive
