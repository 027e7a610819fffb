"""Queue entries: what a run carries about flow control, and the queues they wait in."""

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from . import rates
from .buckets import Bucket
from .config import Flow
from .rates import Level, Pace


class TicketSlot(msgspec.Struct, frozen=True, array_like=True):
    """``limit_name`` tells which of the function's concurrency limits it is that the bucket belongs to."""

    limit_name: str
    bucket_id: str


class Ticket(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """``place`` is the run's place in its function's queue: least first. ``throttle`` is the id of the bucket in which
    its start is counted, ``singleton`` the bucket that it holds."""

    place: int
    slots: tuple[TicketSlot, ...] = ()
    throttle: str | None = None
    singleton: Bucket | None = None

    @property
    def is_queued(self) -> bool:
        """Whether the run's calls, or its first at least, have to ask the queue at all."""
        return bool(self.slots) or self.throttle is not None

    def has_to_queue(self, *, starts_run: bool) -> bool:
        """The same of one call; ``starts_run`` as in ``Queue.join``."""
        return bool(self.slots) or (starts_run and self.throttle is not None)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Ticket)


def encode_ticket(ticket: Ticket) -> bytes:
    return _encoder.encode(ticket)


def decode_ticket(stored: bytes) -> Ticket:
    """Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError``."""
    return _decoder.decode(stored)


class QueuedCall(NamedTuple):
    """Compares by the order in which calls are made: by place, then by age of the run, then of the call."""

    place: int
    run_key: int
    generation: int


class Gate(NamedTuple):
    """A concurrency bucket under a ``limit``, or, where the limit is 0, a throttle's bucket."""

    bucket_id: str
    limit: int = 0


OPEN = Gate("")
"""The gate of a lane that nothing holds up any more."""


class Slot(msgspec.Struct, frozen=True, array_like=True):
    """``limit`` is ``None`` where the function has given it up: calls are still counted, should it come back."""

    limit_name: str
    bucket_id: str
    limit: int | None


class Throttled(msgspec.Struct, frozen=True, array_like=True):
    """``pace`` is ``None`` where the function has given up its throttle."""

    bucket_id: str
    pace: Pace | None


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """``first`` is the call that goes next; ``throttle`` is there where its calls start runs."""

    id: str
    function_id: str
    slots: tuple[Slot, ...]
    throttle: Throttled | None
    first: QueuedCall
    waits_at: Gate = OPEN

    @property
    def gates(self) -> list[Gate]:
        """Where it may come to wait."""
        gates = [Gate(slot.bucket_id, slot.limit) for slot in self.slots if slot.limit is not None]
        if self.throttle is not None and self.throttle.pace is not None:
            gates.append(Gate(self.throttle.bucket_id))
        return gates


class ClosedGate(NamedTuple):
    """``opens_at`` is ``None`` where that depends on the calls under way."""

    gate: Gate
    opens_at: int | None = None


def lane_of(ticket: Ticket, flow: Flow, call: QueuedCall, *, starts_run: bool) -> Lane:
    """The lane in which a call queues, with the numbers that the function has now."""
    throttle = ticket.throttle if starts_run else None
    names = (flow.function_id, throttle, *(slot.bucket_id for slot in ticket.slots))
    return Lane(
        id=hashlib.blake2b(msgspec.msgpack.encode(names), digest_size=16).hexdigest(),
        function_id=flow.function_id,
        slots=_slots(flow, ticket.slots),
        throttle=_throttled(flow, throttle),
        first=call,
    )


def with_numbers_of(flow: Flow, lane: Lane) -> Lane:
    """The lane with the function's present numbers."""
    throttle = None if lane.throttle is None else lane.throttle.bucket_id
    return msgspec.structs.replace(lane, slots=_slots(flow, lane.slots), throttle=_throttled(flow, throttle))


def _slots(flow: Flow, slots: Iterable[TicketSlot | Slot]) -> tuple[Slot, ...]:
    return tuple(Slot(slot.limit_name, slot.bucket_id, flow.limit(slot.limit_name)) for slot in slots)


def _throttled(flow: Flow, bucket_id: str | None) -> Throttled | None:
    return None if bucket_id is None else Throttled(bucket_id, flow.throttle.pace if flow.throttle else None)


def find_closed(
    lane: Lane, used: Callable[[str], int], level: Callable[[str], Level | None], now: int
) -> ClosedGate | None:
    """The gate at which the lane has to wait: the one where it waits already, if that is still closed."""
    closed = [ClosedGate(gate) for gate in lane.gates if gate.limit and used(gate.bucket_id) >= gate.limit]
    if lane.throttle is not None and lane.throttle.pace is not None:
        opens_at = rates.ready_at(lane.throttle.pace, level(lane.throttle.bucket_id), now)
        if opens_at > now:
            closed.append(ClosedGate(Gate(lane.throttle.bucket_id), opens_at))
    return min(closed, key=lambda found: found.gate != lane.waits_at, default=None)


def encode_lane(lane: Lane) -> bytes:
    return msgspec.msgpack.encode(lane)


def decode_lane(stored: bytes) -> Lane:
    """Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError``."""
    return msgspec.msgpack.decode(stored, type=Lane)
