"""Messages to gates, and their state.

They are in histories: fields are only ever added.
"""

from enum import StrEnum

import msgspec

from durably.engine.core.flow.admission import SkipReason
from durably.engine.core.flow.buckets import BucketKind
from durably.engine.temporal.messages import EventRecord
from durably.protocol.options import FunctionOptions


class GateOption(msgspec.Struct, frozen=True, omit_defaults=True):
    """The option of a gate, without its key.

    ``options`` has this one only. ``gate_id`` is the id of the workflow.
    """

    gate_id: str
    function_id: str
    kind: BucketKind
    options: FunctionOptions


class GateRequest(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An event at a gate: the argument of the Update ``admit``.

    ``ts`` is the event's time, ``size`` its bytes. ``event`` is given to gates that hold it, ``run_id`` to that of a
    singleton. ``rate_limit`` is the gate that an event passes after that of ``idempotency``.
    """

    option: GateOption
    event_id: str
    ts: int
    size: int
    event: EventRecord | None = None
    run_id: str = ""
    rate_limit: GateOption | None = None


class GateOutcome(StrEnum):
    ADMITTED = "admitted"
    SKIPPED = "skipped"
    HELD = "held"


class GateAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cancels`` is the run whose place the new one takes."""

    outcome: GateOutcome
    reason: SkipReason | None = None
    cancels: str | None = None


class AnsweredEvent(msgspec.Struct, frozen=True, array_like=True):
    """An answer that is repeated for the same event until a time."""

    answer: GateAnswer
    until: int


class HeldEvents(msgspec.Struct, frozen=True, omit_defaults=True):
    """Events that a debounce or a batch has held back, for which a run starts now.

    ``replaced``: no run starts for them, because a later event took their place.
    """

    function_id: str
    events: tuple[EventRecord, ...]
    replaced: bool = False


class Holder(msgspec.Struct, frozen=True, array_like=True):
    """A run that holds a singleton, or slots, ``since`` a time."""

    run_id: str
    since: int


class GateBucket(msgspec.Struct, frozen=True, omit_defaults=True):
    """``state`` is that of ``engine.core.flow``, encoded."""

    state: bytes
    fires_at: int | None = None
    expires: int | None = None


class GateState(msgspec.Struct, omit_defaults=True):
    """The state of a gate.

    ``events`` are those that it holds, ``holders`` the one of a singleton, both by key.

    ``releases`` are the events that have left it, and for which it starts a run.
    """

    option: GateOption | None = None
    bucket: GateBucket | None = None
    next_key: int = 1
    events: dict[int, EventRecord] = {}
    holders: dict[int, Holder] = {}
    answers: dict[str, AnsweredEvent] = {}
    releases: list[HeldEvents] = []
    packed: bytes = b""
