"""The slots of an app's functions and their processes: messages and decisions.

Pure; a workflow drives it. Messages are in histories: fields are only ever added.
"""

from collections.abc import Collection

import msgspec

from durably.protocol.limits import MAX_COUNT

_KEPT_DIVISOR = 6
"""A process keeps new slots for its lease divided by this. Without it, slots would move at each call."""


class WantedSlots(msgspec.Struct, frozen=True, array_like=True):
    """The slots of a function that a process keeps, and those that it also needs.

    ``limit`` is the function's current limit.
    """

    kept: int
    wanted: int
    limit: int


class LeaseRequest(msgspec.Struct, frozen=True):
    """The argument of the Update ``lease``.

    ``functions`` has all slots that the process keeps or needs. The numbers of a process's requests increase. ``lease``
    is in milliseconds.
    """

    process: str
    number: int
    lease: int
    functions: dict[str, WantedSlots]


class ProcessSlots(msgspec.Struct, frozen=True, array_like=True):
    """The slots of a function that a process has.

    ``share``: the number to keep at most, because other processes wait. ``None``: none waits.
    """

    slots: int
    share: int | None = None


class LeaseAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The slots of the process from now on.

    ``is_lost``: the lease has ended, and the process has no slots.
    """

    functions: dict[str, ProcessSlots] = {}
    is_lost: bool = False


class LeasedSlots(msgspec.Struct, omit_defaults=True):
    """The slots of a function that a process has, and waits for.

    ``granted_at`` and ``waits_since`` are milliseconds since the epoch.
    """

    slots: int = 0
    wanted: int = 0
    granted_at: int = 0
    waits_since: int = 0


class ProcessLease(msgspec.Struct, omit_defaults=True):
    """The lease of a process.

    ``ends`` is milliseconds since the epoch. ``number`` is that of its last request. ``leased`` is by function.
    """

    ends: int
    lease: int
    number: int
    leased: dict[str, LeasedSlots] = msgspec.field(name="holdings", default_factory=dict)


class SlotsState(msgspec.Struct, omit_defaults=True):
    """The state of the slots of an app. ``limits`` are by function."""

    limits: dict[str, int] = {}
    processes: dict[str, ProcessLease] = {}


class SlotPools:
    def __init__(self, state: SlotsState) -> None:
        self.state = state

    @property
    def is_empty(self) -> bool:
        return not self.state.processes

    def next_end(self) -> int | None:
        """The time at which the next lease ends."""
        return min((lease.ends for lease in self.state.processes.values()), default=None)

    def expire(self, now: int) -> None:
        """Free the slots of processes whose leases have ended."""
        for process in [each for each, lease in self.state.processes.items() if lease.ends <= now]:
            del self.state.processes[process]

    def number_of(self, process: str) -> int | None:
        """The number of a process's last request."""
        lease = self.state.processes.get(process)
        return None if lease is None else lease.number

    def accept(self, request: LeaseRequest, now: int) -> bool:
        """Store the slots that a process keeps and needs.

        Returns false if it keeps slots that it does not have, as after the end of its lease. A late or repeated request
        changes nothing.
        """
        lease = self.state.processes.get(request.process)
        if lease is not None and request.number <= lease.number:
            return True
        before = {} if lease is None else lease.leased
        if any(wanted.kept > _slots(before, function_id) for function_id, wanted in request.functions.items()):
            return False
        leased = {}
        for function_id, wanted in request.functions.items():
            self.state.limits[function_id] = wanted.limit
            old = before.get(function_id, LeasedSlots())
            waits_on = old.wanted and wanted.wanted and wanted.kept >= old.slots
            waits_since = old.waits_since if waits_on else now
            if wanted.kept or wanted.wanted:
                leased[function_id] = LeasedSlots(wanted.kept, wanted.wanted, old.granted_at, waits_since)
        if leased:
            self.state.processes[request.process] = ProcessLease(
                now + request.lease, request.lease, request.number, leased
            )
        else:
            self.state.processes.pop(request.process, None)
        self._forget_limits()
        return True

    def grant(self, listening: Collection[str], now: int) -> None:
        """Give free slots to processes that wait for an answer.

        Processes with the fewest slots come first.
        """
        for function_id, limit in self.state.limits.items():
            free = limit - sum(slots.slots for slots in self._leased(function_id).values())
            while free > 0 and (found := self._most_waiting(function_id, listening)) is not None:
                found.slots, found.wanted, found.granted_at = found.slots + 1, found.wanted - 1, now
                free -= 1

    def waits(self, request: LeaseRequest) -> bool:
        """Whether the process needs slots, and got none since its request."""
        lease = self.state.processes.get(request.process)
        if lease is None or lease.number != request.number:
            return False
        needed = [each for each, wanted in request.functions.items() if wanted.wanted]
        return bool(needed) and all(lease.leased[each].slots == request.functions[each].kept for each in needed)

    def rank(self, process: str) -> tuple[int, int]:
        """The rank of a process that needs slots.

        The value is lower if it has fewer slots, or has waited longer.
        """
        lease = self.state.processes.get(process)
        leased = () if lease is None else lease.leased.values()
        waiting = [(slots.slots, slots.waits_since) for slots in leased if slots.wanted > 0]
        return min(waiting, default=(MAX_COUNT, 0))

    def answer(self, process: str, now: int) -> LeaseAnswer:
        lease = self.state.processes.get(process)
        if lease is None:
            return LeaseAnswer()
        return LeaseAnswer(
            {
                function_id: ProcessSlots(slots.slots, self._share(function_id, lease, slots, now))
                for function_id, slots in lease.leased.items()
            }
        )

    def _leased(self, function_id: str) -> dict[str, LeasedSlots]:
        """Leased slots of a function by process."""
        processes = self.state.processes.items()
        return {each: lease.leased[function_id] for each, lease in processes if function_id in lease.leased}

    def _most_waiting(self, function_id: str, listening: Collection[str]) -> LeasedSlots | None:
        waiting = (
            slots for process, slots in self._leased(function_id).items() if slots.wanted > 0 and process in listening
        )
        return min(waiting, key=lambda slots: (slots.slots, slots.waits_since), default=None)

    def _share(self, function_id: str, lease: ProcessLease, slots: LeasedSlots, now: int) -> int | None:
        limit, leased = self.state.limits[function_id], list(self._leased(function_id).values())
        share = limit // len(leased)
        if sum(each.slots for each in leased) > limit:
            return share
        others = [each for each in leased if each is not slots]
        if not any(each.wanted > 0 and each.slots < max(share, 1) for each in others):
            return None
        return share if now - slots.granted_at >= lease.lease // _KEPT_DIVISOR else None

    def _forget_limits(self) -> None:
        used = {function_id for lease in self.state.processes.values() for function_id in lease.leased}
        for function_id in [each for each in self.state.limits if each not in used]:
            del self.state.limits[function_id]


class WaitingRequests:
    """Requests that wait for slots, at most ``most`` of them.

    The processes with the lowest ranks wait. Others get an answer immediately, and repeat their requests.
    """

    def __init__(self, pools: SlotPools, most: int) -> None:
        self._pools = pools
        self._most = most
        self._numbers: dict[str, int] = {}

    @property
    def processes(self) -> Collection[str]:
        return self._numbers

    def has(self, request: LeaseRequest) -> bool:
        return self._numbers.get(request.process) == request.number

    def add(self, request: LeaseRequest) -> None:
        """Add a request that needs slots. If there are too many, drop the highest rank."""
        self._numbers[request.process] = request.number
        if len(self._numbers) > self._most:
            del self._numbers[max(self._numbers, key=self._pools.rank)]

    def remove(self, process: str) -> None:
        self._numbers.pop(process, None)


def _slots(leased: dict[str, LeasedSlots], function_id: str) -> int:
    slots = leased.get(function_id)
    return 0 if slots is None else slots.slots
