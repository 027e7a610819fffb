"""The queue: which of the calls that want to be made may be made now.

Calls join the queue and leave it; ``settle`` then hands out those for which there is room, best place first. What is
handed out holds its concurrency slots until it leaves. The rule that keeps this cheap: *a lane waits at a gate only
while that gate is closed.* So when a gate opens, the lanes that wait there are looked at in order until it is closed
again, and no others; each that has to wait for something else moves there. What waits costs nothing but its rows.

(Lanes that need two gates that both open and close all the time may move between them at every turn. That takes three
limits on one function, two of them coarse and one fine; otherwise a transition moves no more lanes than calls are under
way.)

Pure but for its rows, which are read and written through ``QueueRows``, all within one transaction.
"""

import heapq
from typing import Protocol

import msgspec

from . import rates
from .config import Flow
from .queue_entries import OPEN, Gate, Lane, QueuedCall, Ticket, find_closed, lane_of, with_numbers_of
from .rates import Level


class QueueRows(Protocol):
    """The queue's rows. Each method is one statement that an index answers."""

    def lane(self, lane_id: str) -> Lane | None: ...

    def put_lane(self, lane: Lane) -> None: ...

    def drop_lane(self, lane_id: str) -> None: ...

    def lanes_of(self, function_id: str) -> list[Lane]: ...

    def first_lane(self, gate: Gate) -> Lane | None:
        """Of the lanes that wait at the gate, that with the least ``first``."""

    def next_limit(self, bucket_id: str, above: int) -> int | None:
        """The least limit above this one under which a lane waits at the bucket."""

    def add_call(self, lane_id: str, call: QueuedCall) -> None: ...

    def first_call(self, lane_id: str) -> QueuedCall | None: ...

    def drop_call(self, run_key: int, generation: int) -> str | None:
        """Remove a queued call. The id of its lane; ``None`` where it is not queued."""

    def used(self, bucket_id: str) -> int:
        """How many calls hold a slot of the bucket."""
        ...

    def put_used(self, bucket_id: str, used: int) -> None: ...

    def put_hold(self, run_key: int, generation: int, bucket_ids: tuple[str, ...]) -> None:
        """Note that a call holds a slot of each of the buckets."""

    def take_hold(self, run_key: int, generation: int) -> tuple[str, ...] | None: ...

    def level(self, bucket_id: str) -> Level | None: ...

    def put_level(self, bucket_id: str, level: Level) -> None: ...

    def put_opening(self, bucket_id: str, opens_at: int) -> None:
        """Note when to look at the lanes that wait at a throttle."""

    def take_openings(self, until: int, at_most: int) -> list[str]:
        """Remove what ``put_opening`` noted up to a time: ids of buckets."""
        ...


class _NewLane:
    """A lane without a row, and its calls as a heap."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.calls: list[QueuedCall] = []


class Queue:
    """The queue for one transaction; ``now`` is milliseconds since the epoch."""

    def __init__(self, rows: QueueRows, now: int) -> None:
        self._rows = rows
        self._now = now
        self._made: list[QueuedCall] = []
        self._heap: list[tuple[QueuedCall, _NewLane | Lane]] = []
        self._new: dict[str, _NewLane] = {}
        self._freed: set[str] = set()
        self._to_look_at: set[Gate] = set()
        self._used: dict[str, int] = {}
        self._used_stored: dict[str, int] = {}
        self._levels: dict[str, Level | None] = {}

    def join(self, call: QueuedCall, ticket: Ticket, flow: Flow, *, starts_run: bool) -> None:
        """A call wants to be made. ``starts_run`` is true of a run's first, and not of its repetitions."""
        lane = lane_of(ticket, flow, call, starts_run=starts_run)
        if not lane.slots and lane.throttle is None:
            self._made.append(call)
            return
        stored = self._rows.lane(lane.id)
        if stored is None:
            heapq.heappush(self._new.setdefault(lane.id, _NewLane(lane)).calls, call)
            return
        self._rows.add_call(lane.id, call)
        if call < stored.first:
            self._rows.put_lane(msgspec.structs.replace(stored, first=call))

    def leave(self, run_key: int, generation: int) -> None:
        """A call has come to its end, or is not wanted any more. May be asked for any call, and more than once."""
        held = self._rows.take_hold(run_key, generation)
        if held is not None:
            for bucket_id in held:
                self._used[bucket_id] = self._count(bucket_id) - 1
                self._freed.add(bucket_id)
            return
        lane_id = self._rows.drop_call(run_key, generation)
        lane = None if lane_id is None else self._rows.lane(lane_id)
        if lane is not None:
            self._advance(lane)
        else:
            self._forget(run_key, generation)

    def look_at_openings(self, at_most: int) -> bool:
        """Look at throttles that are ready by now. Whether there may be more of them."""
        opened = self._rows.take_openings(self._now, at_most)
        self._to_look_at.update(Gate(bucket_id) for bucket_id in opened)
        return len(opened) == at_most

    def look_at_function(self, flow: Flow) -> None:
        """After a sync that changed a function's flow control: what it has queued goes by the new numbers."""
        for lane in self._rows.lanes_of(flow.function_id):
            changed = with_numbers_of(flow, lane)
            if changed != lane:
                self._put_changed(changed)

    def settle(self) -> list[QueuedCall]:
        """The calls that may be made now, in order. They hold their slots from now on."""
        self._made.sort()
        for new in self._new.values():
            heapq.heappush(self._heap, (new.calls[0], new))
        for gate in self._gates_to_look_at():
            self._push(gate)
        while self._heap:
            _, source = heapq.heappop(self._heap)
            if isinstance(source, _NewLane):
                self._look_at_new(source)
            else:
                self._look_at_waiting(source)
        self._write_counts()
        return self._made

    def _gates_to_look_at(self) -> set[Gate]:
        gates = set(self._to_look_at)
        for bucket_id in self._freed:
            limit = self._count(bucket_id)
            while (found := self._rows.next_limit(bucket_id, limit)) is not None:
                gates.add(Gate(bucket_id, found))
                limit = found
        return gates

    def _push(self, gate: Gate) -> None:
        """Have the first lane that waits at a gate looked at in its turn. It cannot change before that: lanes only come
        to wait at gates that have closed, and within a transaction those do not open again."""
        lane = self._rows.first_lane(gate)
        if lane is not None:
            heapq.heappush(self._heap, (lane.first, lane))

    def _look_at_waiting(self, lane: Lane) -> None:
        closed = find_closed(lane, self._count, self._level, self._now)
        if closed is not None:
            if closed.opens_at is not None:
                self._rows.put_opening(closed.gate.bucket_id, closed.opens_at)
            if closed.gate == lane.waits_at:
                return
            self._rows.put_lane(msgspec.structs.replace(lane, waits_at=closed.gate))
        else:
            self._rows.drop_call(lane.first.run_key, lane.first.generation)
            self._make(lane, lane.first)
            self._advance(lane)
        self._push(lane.waits_at)

    def _look_at_new(self, new: _NewLane) -> None:
        closed = find_closed(new.lane, self._count, self._level, self._now)
        if closed is None:
            self._make(new.lane, heapq.heappop(new.calls))
            if new.calls:
                heapq.heappush(self._heap, (new.calls[0], new))
            return
        if closed.opens_at is not None:
            self._rows.put_opening(closed.gate.bucket_id, closed.opens_at)
        self._rows.put_lane(msgspec.structs.replace(new.lane, first=new.calls[0], waits_at=closed.gate))
        for call in new.calls:
            self._rows.add_call(new.lane.id, call)

    def _make(self, lane: Lane, call: QueuedCall) -> None:
        for slot in lane.slots:
            self._used[slot.bucket_id] = self._count(slot.bucket_id) + 1
        if lane.slots:
            self._rows.put_hold(call.run_key, call.generation, tuple(slot.bucket_id for slot in lane.slots))
        if lane.throttle is not None and lane.throttle.pace is not None:
            bucket_id = lane.throttle.bucket_id
            level = rates.take(lane.throttle.pace, self._level(bucket_id), self._now)
            self._levels[bucket_id] = level
            self._rows.put_level(bucket_id, level)
        self._made.append(call)

    def _advance(self, lane: Lane) -> None:
        """After a call has left a lane's rows."""
        first = self._rows.first_call(lane.id)
        if first is None:
            self._rows.drop_lane(lane.id)
        elif first != lane.first:
            self._rows.put_lane(msgspec.structs.replace(lane, first=first))

    def _put_changed(self, lane: Lane) -> None:
        """Write a lane whose numbers may have changed, and have it looked at."""
        gates = lane.gates
        if lane.waits_at not in gates:
            lane = msgspec.structs.replace(lane, waits_at=gates[0] if gates else OPEN)
        self._to_look_at.add(lane.waits_at)
        self._rows.put_lane(lane)

    def _forget(self, run_key: int, generation: int) -> None:
        """Drop a call that has joined in this transaction."""
        self._made = [call for call in self._made if (call.run_key, call.generation) != (run_key, generation)]
        for lane_id, new in list(self._new.items()):
            new.calls = [call for call in new.calls if (call.run_key, call.generation) != (run_key, generation)]
            heapq.heapify(new.calls)
            if not new.calls:
                del self._new[lane_id]

    def _count(self, bucket_id: str) -> int:
        used = self._used.get(bucket_id)
        if used is None:
            used = self._used[bucket_id] = self._used_stored[bucket_id] = self._rows.used(bucket_id)
        return used

    def _level(self, bucket_id: str) -> Level | None:
        if bucket_id not in self._levels:
            self._levels[bucket_id] = self._rows.level(bucket_id)
        return self._levels[bucket_id]

    def _write_counts(self) -> None:
        for bucket_id, used in self._used.items():
            if used != self._used_stored[bucket_id]:
                self._rows.put_used(bucket_id, used)
