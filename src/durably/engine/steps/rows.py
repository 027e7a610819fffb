"""Times of steps, attempts and waits, as engines store them.

Times are milliseconds since the epoch, but ``ran_from`` and ``ran_for`` are microseconds: the time at which the app
began to execute a step, and how long that took. ``called_at`` is when the call was made that reported it.
"""

import msgspec

from durably.protocol.opcodes import Opcode


class MemoTimes(msgspec.Struct, frozen=True, gc=False):
    """Times and topic of a step that has ended."""

    created_at: int
    ended_at: int
    called_at: int | None = None
    ran_from: int | None = None
    ran_for: int | None = None
    topic: str | None = None


class MemoRow(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A finished step without its memo.

    ``is_copied``: it is of the run that this one repeats. ``arguments`` are JSON.
    """

    step_id: str
    name: str
    op: Opcode
    attempts: int
    failed: bool
    times: MemoTimes
    is_copied: bool = False
    arguments: bytes | None = None


class AttemptRow(msgspec.Struct, frozen=True, gc=False):
    """A failed attempt.

    ``error`` is one short line, ``data`` the error as JSON. ``retry_at`` is when the next attempt was or is due.
    """

    step_id: str
    attempt: int
    name: str
    ended_at: int
    error: str
    data: bytes | None
    queued_at: int | None = None
    called_at: int | None = None
    ran_from: int | None = None
    ran_for: int | None = None
    retry_at: int | None = None


class UnfinishedStep(msgspec.Struct, frozen=True, gc=False):
    """A step that had not ended when its run did.

    ``due`` is when its call was due, its sleep would have ended, or its wait would have timed out.
    """

    step_id: str
    name: str
    op: Opcode
    created_at: int
    attempts: int = 0
    due: int | None = None
    topic: str | None = None
    called_at: int | None = None


class OpenWait(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A wait that has not ended.

    ``due`` is when it times out, or a sleep ends; ``topic`` is what it is for.
    """

    created_at: int
    due: int | None = None
    topic: str | None = None
    called_at: int | None = None


class EndedWait(msgspec.Struct, frozen=True, gc=False):
    """A wait that has ended.

    ``topic`` is what it was for, ``called_at`` the time of the call that asked for it.
    """

    created_at: int
    topic: str | None
    called_at: int | None
