"""Messages between processes and the workflow that leases slots to them.

They are in histories: fields are only ever added.
"""

import msgspec


class WantedSlots(msgspec.Struct, frozen=True, array_like=True):
    """The slots of a function that a process keeps, and those that it needs besides.

    ``limit`` is the function's present limit.
    """

    kept: int
    wanted: int
    limit: int


class LeaseRequest(msgspec.Struct, frozen=True):
    """The argument of the Update ``lease``.

    ``functions`` has all slots that the process keeps or needs. The numbers of a process's requests rise. ``lease`` is
    in milliseconds.
    """

    process: str
    number: int
    lease: int
    functions: dict[str, WantedSlots]


class HeldSlots(msgspec.Struct, frozen=True, array_like=True):
    """The slots of a function that a process holds.

    ``share``: it should keep no more, because other processes wait. ``None``: none waits.
    """

    slots: int
    share: int | None = None


class LeaseAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The slots of the process from now on.

    ``is_lost``: the process has no lease any more, and holds nothing.
    """

    functions: dict[str, HeldSlots] = {}
    is_lost: bool = False


class Holding(msgspec.Struct, omit_defaults=True):
    """The slots of a function that a process holds, and waits for.

    ``granted_at`` and ``waits_since`` are milliseconds since the epoch.
    """

    slots: int = 0
    wanted: int = 0
    granted_at: int = 0
    waits_since: int = 0


class ProcessLease(msgspec.Struct, omit_defaults=True):
    """The lease of a process.

    ``ends`` is milliseconds since the epoch. ``number`` is that of its last request, ``holdings`` are by function.
    """

    ends: int
    lease: int
    number: int
    holdings: dict[str, Holding] = {}


class SlotsState(msgspec.Struct, omit_defaults=True):
    """The state of the slots of an app. ``limits`` are by function."""

    limits: dict[str, int] = {}
    processes: dict[str, ProcessLease] = {}
