"""What a run carries with it about flow control, from when it is admitted until it ends.

Key expressions are evaluated once, when the run is admitted. The numbers they go with, limits and paces, are always
those of the function as it was synced last.
"""

import msgspec

from .buckets import Bucket


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
