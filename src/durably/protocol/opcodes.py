"""Ops, the requests of steps to the engine, and the contents of memos.

Spec §5.1.1 and §5.3 define them.
"""

import hashlib
from enum import StrEnum
from functools import lru_cache
from typing import Any

import msgspec

from .errors import ErrorData


class Opcode(StrEnum):
    STEP = "Step"
    STEP_RUN = "StepRun"
    STEP_ERROR = "StepError"
    STEP_FAILED = "StepFailed"
    STEP_PLANNED = "StepPlanned"
    STEP_NOT_FOUND = "StepNotFound"
    SLEEP = "Sleep"
    WAIT_FOR_EVENT = "WaitForEvent"
    WAIT_FOR_SIGNAL = "WaitForSignal"
    INVOKE_FUNCTION = "InvokeFunction"
    AI_GATEWAY = "AIGateway"
    GATEWAY = "Gateway"
    RUN_COMPLETE = "RunComplete"
    DISCOVERY_REQUEST = "DiscoveryRequest"
    DEFER_ADD = "DeferAdd"
    DEFER_ABORT = "DeferAbort"


PARALLEL_MODE_OPT = "parallelMode"
"""The option of an op with the ``ParallelMode`` of its step."""
RETRY_AFTER_OPT = "retryAfter"
"""In the opts of a failed step: when to retry it. Several failed steps need more than the one header."""


STEP_INPUT_OPT = "input"
"""In the opts of an executed step: the list of its handler's positional arguments."""


class ParallelMode(StrEnum):
    """When the engine requests discovery while several steps of a run are under way.

    ``WAIT``: once all of them have ended, which costs the fewest calls. ``RACE``: after each one, so that branches of
    several steps advance independently of each other.
    """

    RACE = "race"
    WAIT = "wait"


class Userland(msgspec.Struct, frozen=True, omit_defaults=True):
    """The step's id as the user wrote it.

    ``index`` is the number of the repetition of that id, from 1.
    """

    id: str
    index: int | None = None


class Timing(msgspec.Struct, frozen=True, gc=False):
    """The time in which an app executed a step.

    ``a`` is its start and ``b`` its duration. Both are nanoseconds, ``a`` since the epoch.
    """

    a: int
    b: int


class Op(msgspec.Struct, kw_only=True, omit_defaults=True, rename={"display_name": "displayName"}, gc=False):
    """One op.

    Executed steps set ``data`` and ``error``, all others ``opts``. ``timing`` is that of an executed step, if the SDK
    sends it; see ``read_timing``. ``metadata`` is a list of ``{kind, scope, op, values}``; see
    ``usage.read_usage_metadata``.
    """

    id: str = ""
    op: str
    name: str | None = None
    display_name: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: ErrorData | None = None
    opts: dict[str, Any] | None = None
    userland: Userland | None = None
    timing: Any = None
    metadata: Any = None

    @property
    def parallel_mode(self) -> Any:
        return self.opts.get(PARALLEL_MODE_OPT) if self.opts else None

    @property
    def is_race(self) -> bool:
        return self.parallel_mode == ParallelMode.RACE  # type: ignore[no-any-return]


def read_timing(timing: Any) -> Timing | None:
    """The time in which an app executed a step, from its op.

    ``None`` if the SDK sent no valid time.
    """
    if timing is None or type(timing) is Timing:
        return timing
    try:
        return Timing(int(timing["a"]), max(int(timing["b"]), 0))
    except (TypeError, ValueError, KeyError, OverflowError):
        return None


@lru_cache(maxsize=4096)
def hash_step_id(step_id: str, index: int = 0) -> str:
    """The wire id of a step.

    It is the hex SHA-1 of the step's id, or of ``id:n`` for its n-th repetition (spec §5.1.2). Results are cached,
    because most ids are literals in functions that are replayed often.
    """
    text = f"{step_id}:{index}" if index else step_id
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


FUNCTION_END_ID = hash_step_id("complete")
"""The id of an op that reports the end of the function: its output, or its error as that of a step."""

MAY_TIME_OUT = (Opcode.WAIT_FOR_EVENT, Opcode.WAIT_FOR_SIGNAL)
"""Ops whose memo is null after a timeout."""
_RESULT_KEYS = frozenset(("data", "type"))


def unwrap_memo(memo: Any) -> Any:
    """A step's result.

    All memos but those of event waits wrap it. Other memos, such as errors, are returned unchanged.
    """
    return memo["data"] if isinstance(memo, dict) and "data" in memo and _RESULT_KEYS.issuperset(memo) else memo
