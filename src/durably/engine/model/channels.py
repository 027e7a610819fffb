"""The hub of channels: messages for the programs and people that listen now, in memory.

The hub keeps the newest messages of each channel for listeners that come back. A message has an id, a number that grows
over all channels, so that one position serves for any set of them. Ids begin with the time at which the engine started:
the position of another engine is recognised, and its reader gets a ``$gap`` message.

The engine's own messages about a run (``$run``, ``$step``, ``$progress``) are made only while somebody reads the run's
channel. A reader whose position is older gets the state of the run instead. They are kept apart, so that they displace
nothing that the run has published.
"""

import asyncio
import contextlib
import datetime as dt
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from durably.engine.core.run_state import RunStatus
from durably.protocol.channels import (
    GAP_TOPIC,
    MAX_CHANNEL_NAME_LENGTH,
    MAX_MESSAGE_BYTES,
    PROGRESS_TOPIC,
    RUN_TOPIC,
    STEP_TOPIC,
    Message,
    MessageBatch,
    NewMessage,
    is_run_id,
)
from durably.protocol.engine_errors import EngineClosedError, EventInvalidError, TooLargeError

from .runs import Run, RunUpdate, Step, StepStatus, UpdateKind, describe_error
from .settings import Timer
from .subscriptions import RunChange

MAX_KEPT_MESSAGES = 1_000
MAX_KEPT_BYTES = 1024 * 1024
"""The limits of one channel, for published messages and again for those about its run."""
MAX_TOTAL_BYTES = 64 * 1024 * 1024
"""The limit of all channels."""
LATE_READER_SECONDS = 60.0
"""Seconds for which the messages of an ended run are kept."""
IDLE_SECONDS = 600.0
"""Seconds for which the messages of a channel are kept after the last one, if nobody reads it."""
LONGEST_WAIT_SECONDS = 20.0
_FOLLOWED_SECONDS = 30.0
"""Seconds after a read in which the engine still makes messages about the run, since readers read again."""
_GATHER_SECONDS = 0.01
"""Seconds for which a read gathers messages after the first one."""
_SWEEP_SECONDS = 5.0
_OVERHEAD_BYTES = 400
"""What a message costs in addition to its data."""
_MAX_CHANNEL_SIZE = MAX_KEPT_BYTES + MAX_KEPT_MESSAGES * _OVERHEAD_BYTES
_MAX_BATCH_BYTES = 1024 * 1024
_ID_BITS = 22
"""Bits of an id below the start time in milliseconds. Numbers beyond them carry over, which the time outruns."""


class Loop(Protocol):
    """The clock and the timers of an event loop."""

    def time(self) -> float: ...

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer: ...


Listener = Callable[[Message], None]
"""Gets each message of a channel. It must be quick, and must not raise."""
LoadRun = Callable[[str], Awaitable[tuple[Run, list[Step]] | None]]
"""Reads a run and its steps."""


class _Kept:
    """The newest messages, within the limits of a channel. ``evicted`` is the id of the last one that was removed."""

    __slots__ = ("evicted", "messages", "size")

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self.size = 0
        self.evicted = 0

    @property
    def newest(self) -> int:
        return self.messages[-1].id if self.messages else self.evicted

    def add(self, message: Message) -> int:
        """Keep a message. Returns by how many bytes the size has changed."""
        before = self.size
        self.messages.append(message)
        self.size += _size_of(message)
        while len(self.messages) > MAX_KEPT_MESSAGES or self.size > _MAX_CHANNEL_SIZE:
            self.evict()
        return self.size - before

    def evict(self) -> int:
        """Remove the oldest message. Returns its size."""
        oldest = self.messages.popleft()
        self.evicted = oldest.id
        size = _size_of(oldest)
        self.size -= size
        return size

    def after(self, position: int) -> list[Message]:
        """The messages after a position. Readers are usually near the end."""
        messages = self.messages
        if not messages or messages[-1].id <= position:
            return []
        if messages[0].id > position:
            return list(messages)
        found: list[Message] = []
        for message in reversed(messages):
            if message.id <= position:
                break
            found.append(message)
        return found


class _Channel:
    """Before ``known_from`` nothing is known. ``updates``, the messages about the run, began at ``followed_from``."""

    __slots__ = ("ended_at", "followed_from", "known_from", "listeners", "published", "read_at", "updates", "used_at")

    def __init__(self, known_from: int, now: float) -> None:
        self.published = _Kept()
        self.updates = _Kept()
        self.known_from = known_from
        self.followed_from = 0
        self.listeners: set[Listener] = set()
        self.read_at = -_FOLLOWED_SECONDS
        self.used_at = now
        self.ended_at: float | None = None

    @property
    def size(self) -> int:
        return self.published.size + self.updates.size

    @property
    def updates_from(self) -> int:
        """The position since which messages about the run are complete."""
        return max(self.followed_from, self.updates.evicted)

    def is_followed(self, now: float) -> bool:
        return bool(self.listeners) or now - self.read_at < _FOLLOWED_SECONDS


def _size_of(message: Message) -> int:
    return len(bytes(message.data)) + _OVERHEAD_BYTES


class _LoadedRun(msgspec.Struct, frozen=True):
    """``began`` is the newest message before the run was loaded. Later changes may have happened after it."""

    run: Run
    steps: list[Step]
    began: int


class Channels:
    """The channels of an engine, on its event loop. ``clock`` gives milliseconds since the epoch."""

    def __init__(self, clock: Callable[[], int], loop: Loop) -> None:
        self._clock, self._loop = clock, loop
        self._first = self._last = clock() << _ID_BITS
        self._freed = 0
        """The id of the newest message of a channel that was freed."""
        self._channels: OrderedDict[str, _Channel] = OrderedDict()
        """In the order of their last messages."""
        self._size = 0
        self._reads: dict[str, asyncio.Event] = {}
        self._waiting: set[asyncio.Event] = set()
        self._sweeping: Timer | None = None
        self.on_close: set[Callable[[], None]] = set()
        self._is_closed = False

    @property
    def size(self) -> int:
        """The bytes of all kept messages."""
        return self._size

    def __len__(self) -> int:
        return len(self._channels)

    # publish

    def publish(self, messages: Iterable[NewMessage]) -> None:
        """Publish messages. Raises ``EventInvalidError`` and ``TooLargeError`` before it publishes any."""
        messages = list(messages)
        for message in messages:
            check_name("channel", message.channel)
            check_name("topic", message.topic)
            if len(bytes(message.data)) > MAX_MESSAGE_BYTES:
                raise TooLargeError(
                    f"a message of the topic {message.topic!r} has {len(bytes(message.data))} bytes; at most "
                    f"{MAX_MESSAGE_BYTES} are accepted"
                )
        created_at = dt.datetime.fromtimestamp(self._clock() / 1000, dt.UTC)
        for message in messages:
            self._add(message, created_at)

    def is_followed(self, channel: str) -> bool:
        """Whether somebody reads the channel, so that the engine makes messages about its run."""
        found = self._channels.get(channel)
        return found is not None and found.is_followed(self._loop.time())

    def add_own(self, channel: str, topic: str, data: Any) -> None:
        """Publish a message of the engine, if somebody reads the channel."""
        if self.is_followed(channel):
            self._add(
                NewMessage(channel, topic, _encode(data)), dt.datetime.fromtimestamp(self._clock() / 1000, dt.UTC)
            )

    def note(self, change: RunChange) -> None:
        """A commit has stored a change of a run."""
        channel = self._channels.get(change.run.id)
        if channel is None:
            return
        if channel.is_followed(self._loop.time()):
            update = change.to_update()
            topic, data = _describe_update(update)
            self._add(NewMessage(update.run_id, topic, _encode(data)), update.at)
        if change.kind in _ENDS:
            self.end(change.run.id)

    def end(self, run_id: str) -> None:
        """The run has ended: its channel has no further messages."""
        if (channel := self._channels.get(run_id)) is not None:
            channel.ended_at = self._loop.time()

    def _add(self, new: NewMessage, created_at: dt.datetime) -> None:
        self._last += 1
        name = new.channel
        message = Message(self._last, name, new.topic, new.data, created_at, new.kind, new.stream_id)
        channel = self._get(name)
        channel.used_at = self._loop.time()
        kept = channel.updates if new.topic in _STATE_TOPICS else channel.published
        self._size += kept.add(message)
        self._channels.move_to_end(name)
        while self._size > MAX_TOTAL_BYTES:
            self._evict_oldest()
        for listener in list(channel.listeners):
            listener(message)

    def _evict_oldest(self) -> None:
        """Remove a message of the channel that has been silent for the longest time."""
        for channel in self._channels.values():
            if kept := next((each for each in (channel.published, channel.updates) if each.messages), None):
                self._size -= kept.evict()
                return

    # channels

    def _get(self, name: str) -> _Channel:
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = _Channel(self._freed, self._loop.time())
            if self._sweeping is None and not self._is_closed:
                self._sweeping = self._loop.call_later(_SWEEP_SECONDS, self._sweep)
        return channel

    def _sweep(self) -> None:
        """Free channels that nobody uses."""
        now = self._loop.time()
        for name, channel in list(self._channels.items()):
            if channel.is_followed(now):
                continue
            if channel.ended_at is not None:
                is_over = now - max(channel.ended_at, channel.read_at) > LATE_READER_SECONDS
            else:
                is_over = not channel.size or now - channel.used_at > IDLE_SECONDS
            if is_over:
                self._size -= channel.size
                self._freed = max(self._freed, channel.published.newest)
                del self._channels[name]
        self._sweeping = self._loop.call_later(_SWEEP_SECONDS, self._sweep) if self._channels else None

    # read

    def listen(self, names: Collection[str], listener: Listener) -> None:
        """Call ``listener`` with each later message of the channels, until ``ignore``."""
        now = self._loop.time()
        for name in names:
            channel = self._get(name)
            if not channel.is_followed(now):
                self._last += 1  # Each earlier position needs the state of the run.
                channel.followed_from = self._last
            channel.listeners.add(listener)

    def ignore(self, names: Collection[str], listener: Listener) -> None:
        now = self._loop.time()
        for name in names:
            if (channel := self._channels.get(name)) is not None:
                channel.listeners.discard(listener)
                channel.read_at = now

    async def read(
        self, positions: Mapping[str, int], load_run: LoadRun, *, reader: str | None = None, waits: bool = True
    ) -> MessageBatch:
        """The messages of channels after positions, 0 for all that are kept.

        Without any, it ``waits`` up to 20 s for some, or until the same ``reader`` reads again. The channel of a run
        begins with the state of the run. Raises ``EngineClosedError``.
        """
        for name in positions:
            check_name("channel", name)
        arrived = asyncio.Event()
        if reader is not None:
            if (before := self._reads.get(reader)) is not None:
                before.set()
            self._reads[reader] = arrived

        def wake(message: Message) -> None:
            arrived.set()

        self._waiting.add(arrived)
        self.listen(positions, wake)
        try:
            batch = await self._collect(positions, load_run)
            if waits and not batch.messages and not batch.ended:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LONGEST_WAIT_SECONDS):
                        await arrived.wait()
                    await asyncio.sleep(_GATHER_SECONDS)
                batch = await self._collect(dict.fromkeys(positions, batch.position), load_run)
            return batch
        finally:
            self.ignore(positions, wake)
            self._waiting.discard(arrived)
            if reader is not None and self._reads.get(reader) is arrived:
                del self._reads[reader]

    async def _collect(self, positions: Mapping[str, int], load_run: LoadRun) -> MessageBatch:
        loaded: dict[str, _LoadedRun] = {}
        known = {name: self._start(position) for name, position in positions.items()}
        while stale := [
            name for name, since in known.items() if since < self._channels[name].updates_from and is_run_id(name)
        ]:
            for name in stale:
                began = known[name] = self._last
                if (run_and_steps := await load_run(name)) is not None:
                    loaded[name] = _LoadedRun(*run_and_steps, began)
        if self._is_closed:
            raise EngineClosedError("the engine is closed")
        return self._assemble(positions, loaded)

    def _start(self, position: int) -> int:
        """The position, or 0 for one of another engine."""
        return position if self._first <= position <= self._last else 0

    def _assemble(self, positions: Mapping[str, int], loaded: Mapping[str, _LoadedRun]) -> MessageBatch:
        at = dt.datetime.fromtimestamp(self._clock() / 1000, dt.UTC)
        states: list[Message] = []
        kept: list[Message] = []
        for name, position in positions.items():
            channel = self._channels[name]
            is_new = max(channel.published.newest, channel.updates.newest, channel.known_from) > position
            if not is_new and self._first <= position <= self._last and name not in loaded:
                continue  # It has nothing new, as most of many channels.
            start = self._start(position)
            if reason := self._explain_gap(channel, position, start):
                states.append(Message(start, name, GAP_TOPIC, _encode({"reason": reason}), at))
            kept += channel.published.after(start)
            if (found := loaded.get(name)) is None:
                kept += channel.updates.after(start)
                continue
            run = found.run
            if run.status.has_ended:
                channel.ended_at = channel.ended_at or self._loop.time()
            else:
                kept += channel.updates.after(found.began)
                states.append(Message(start, name, RUN_TOPIC, _encode(describe_run(run)), at))
            if run.progress is not None:
                states.append(Message(start, name, PROGRESS_TOPIC, _encode(run.progress), at))
            states += [Message(start, name, STEP_TOPIC, _encode(describe_step(step)), at) for step in found.steps]
        kept.sort(key=lambda message: message.id)
        cut, size = self._last, 0
        for number, message in enumerate(kept):
            size += _size_of(message)
            if size > _MAX_BATCH_BYTES and number:
                cut = kept[number - 1].id
                del kept[number:]
                break
        ended: list[str] = []
        if cut == self._last:
            ended = [name for name in positions if self._channels[name].ended_at is not None]
            for name in ended:
                if (found := loaded.get(name)) is not None and found.run.status.has_ended:
                    kept.append(Message(cut, name, RUN_TOPIC, _encode(describe_run(found.run)), at))
        return MessageBatch(states + kept, cut, ended, has_more=cut != self._last)

    def _explain_gap(self, channel: _Channel, position: int, start: int) -> str:
        if position and not start:
            return "the engine has restarted, or another process has taken it over: earlier messages are lost"
        if start < channel.published.evicted:
            return f"only the newest messages of a channel are kept: at most {MAX_KEPT_MESSAGES}"
        if start and start < channel.known_from:
            return "the channel was not used for a long time: messages may be lost"
        return ""

    def close(self) -> None:
        self._is_closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for arrived in self._waiting:
            arrived.set()
        for call in list(self.on_close):
            call()


def check_name(kind: str, name: str) -> None:
    """Raises ``EventInvalidError`` for a name of a channel or topic that is empty or too long."""
    if not 0 < len(name) <= MAX_CHANNEL_NAME_LENGTH:
        raise EventInvalidError(
            f"a {kind}'s name has 1 to {MAX_CHANNEL_NAME_LENGTH} characters, not {len(name)}: {name[:50]!r}"
        )


# the engine's own messages

_STATE_TOPICS = (RUN_TOPIC, STEP_TOPIC, PROGRESS_TOPIC)
_ENDS = {
    UpdateKind.RUN_COMPLETED: RunStatus.COMPLETED,
    UpdateKind.RUN_FAILED: RunStatus.FAILED,
    UpdateKind.RUN_CANCELLED: RunStatus.CANCELLED,
    UpdateKind.RUN_SKIPPED: RunStatus.SKIPPED,
}
_STEP_STATUSES = {
    UpdateKind.STEP_COMPLETED: StepStatus.COMPLETED,
    UpdateKind.STEP_FAILED: StepStatus.FAILED,
    UpdateKind.RETRYING: StepStatus.RETRYING,
    UpdateKind.UNREACHED: StepStatus.RETRYING,
    UpdateKind.SLEEPING: StepStatus.SLEEPING,
    UpdateKind.WAITING: StepStatus.WAITING,
}
_encoder = msgspec.json.Encoder()


def _encode(data: Any) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(data))


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if value is not None}


def describe_run(run: Run) -> dict[str, Any]:
    """The data of a ``$run`` message."""
    is_completed = run.status is RunStatus.COMPLETED
    error = None if is_completed or run.output is None else describe_error(run.output)
    output = run.output if is_completed else None
    return _without_none({"status": run.status, "function_id": run.function_id, "output": output, "error": error})


def describe_step(step: Step) -> dict[str, Any]:
    """The data of a ``$step`` message."""
    error = step.error and f"{step.error.name or 'Error'}: {step.error.message or ''}"
    return _without_none({"step": step.id, "status": step.status, "due_at": step.due_at, "error": error})


def _describe_update(update: RunUpdate) -> tuple[str, dict[str, Any]]:
    """The topic and the data of the message about an update.

    A retry of the function's own code is a message about the run.
    """
    if update.step is None:
        status = _ENDS.get(update.kind, RunStatus.RUNNING)
        data: dict[str, Any] = {"status": status, "function_id": update.function_id, "output": update.output}
        return RUN_TOPIC, _without_none({**data, "due_at": update.due_at, "error": update.error})
    data = {"step": update.step, "status": _STEP_STATUSES[update.kind], "due_at": update.due_at, "error": update.error}
    return STEP_TOPIC, _without_none(data)
