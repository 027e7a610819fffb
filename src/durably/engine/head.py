"""The head of a run: all that decides what happens to it next.

A head is small, whatever the run has done so far: memos are rows beside it that the machine never reads.
It knows nothing of where it is stored; ``encode_head`` and ``decode_head`` give it a form to store.
"""

from enum import StrEnum

import msgspec

from durably.protocol.headers import DISCOVER
from durably.protocol.opcodes import Opcode

MACHINE_VERSION = 1
"""Raised when a head of before would be read or carried on differently. ``decode_head`` reads all older ones."""


class RunStatus(StrEnum):
    SCHEDULED = "Scheduled"
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    SKIPPED = "Skipped"

    @property
    def has_ended(self) -> bool:
        return self not in (RunStatus.SCHEDULED, RunStatus.RUNNING)


class Call(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An outstanding call, to be made at ``due`` (milliseconds since the epoch) or under way since.

    ``step_id`` is the planned step that it targets, or ``DISCOVER``. ``generation`` is its lease: whatever
    arrives under another one is stale. ``attempt`` counts from 0; ``unreached`` is how often in a row it did
    not reach the app. ``race`` is the parallel mode of the targeted step, ``memos_seen`` how many memos the
    discovery saw, at least, that is or that planned this call. ``error`` is why the attempt before failed.
    """

    generation: int
    due: int
    step_id: str = DISCOVER
    name: str = ""
    attempt: int = 0
    unreached: int = 0
    race: bool = False
    memos_seen: int = 0
    error: str = ""

    @property
    def is_discovery(self) -> bool:
        return self.step_id == DISCOVER

    def is_made(self, now: int) -> bool:
        """Whether it is under way, or about to be: all but repetitions that are put off. What was never put off is
        made even where the clock has been set back since, and now says that it is not due."""
        return self.due <= now or not self.error


class Wait(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An outstanding step that waits for something other than a call; ``op`` says for what.

    ``generation``, ``attempt`` and ``needs_op`` concern requests alone: what a request was to send is kept
    nowhere durable, so after a restart the step ``needs_op``: the app has to report it again.
    """

    step_id: str
    op: Opcode
    name: str = ""
    race: bool = False
    generation: int = 0
    attempt: int = 0
    needs_op: bool = False


class Deferred(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A function that the run has deferred: to be started once the run has ended, if it still ``is_abortable``.
    ``size`` is that of its data, in bytes; the data itself is stored beside the head."""

    step_id: str
    size: int = 0
    is_abortable: bool = True


class Head(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """``generation`` is the last one given out. ``discover_again`` is a wish for discovery that came while
    one was under way. ``memos`` and ``bytes`` count what the run has stored, for the protocol's limits."""

    version: int
    status: RunStatus
    max_attempts: int
    generation: int = 0
    calls: tuple[Call, ...] = ()
    waits: tuple[Wait, ...] = ()
    discover_again: bool = False
    disable_immediate: bool = False
    memos: int = 0
    bytes: int = 0
    defers: tuple[Deferred, ...] = ()

    def call(self, generation: int) -> Call | None:
        return next((call for call in self.calls if call.generation == generation), None)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Head)


def encode_head(head: Head) -> bytes:
    return _encoder.encode(head)


def decode_head(stored: bytes) -> Head:
    """Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError``."""
    return _decoder.decode(stored)
