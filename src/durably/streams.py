"""Streams of messages: what runs publish, for Python code and for browsers.

``follow`` yields the messages of channels. A process reads them from the engine with one request at a time, whatever
the number of its listeners, and passes them on to the queue of each listener. A slow listener loses its oldest messages
and gets a ``$gap`` message in their place; it never slows the others or a run. Many listeners are woken in several
turns of their event loop, which leave turns to the functions of the app.
"""

import asyncio
import contextlib
import datetime as dt
import os
import secrets
import threading
from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from durably.io.background_loop import get_background_loop
from durably.io.http_client import AsyncIO
from durably.protocol.channels import GAP_TOPIC, RUN_TOPIC, MessageBatch, MessageKind

from .app import App
from .engine_client import execute, find_run
from .errors import EngineNotStartedError, EngineStoppingError, Error, NotSupportedError, RunNotFoundError

MAX_QUEUED = 1_000
MAX_QUEUED_BYTES = 1024 * 1024
"""The limits of the messages that wait for one listener."""
_END = "-end"
"""The end of the id of a run's last message: a reader that comes back with it has seen everything."""
_UNKNOWN = 1
"""A position of no engine, for an id that cannot be read."""
_POLL_SECONDS = 30.0
_RETRY_SECONDS = 1.0
_JOIN_SECONDS = 0.005
_KICK_SECONDS = 0.1
_WAKES_A_TURN = 32
"""Listeners that are woken in one turn of their event loop."""
_io = AsyncIO()


_MARKS = (MessageKind.STREAM_START, MessageKind.STREAM_END)


class StreamMessage(msgspec.Struct, frozen=True, gc=False):
    """A message of a channel.

    - ``id``: The position after this message, for ``last_event_id``.
    - ``topic``: ``$run``, ``$step`` and ``$progress`` are the engine's messages about the run, ``$gap`` says that
      messages may be missing.
    - ``json``: The data, encoded. Messages are shared between listeners, so ``data`` decodes it for each.
    """

    id: str
    channel: str
    topic: str
    json: msgspec.Raw
    created_at: dt.datetime

    @property
    def data(self) -> Any:
        return msgspec.json.decode(self.json)


async def follow(
    client: App,
    channels: str | Sequence[str],
    *,
    topics: Iterable[str] | None = None,
    last_event_id: str | None = None,
    run_id: str | None = None,
) -> AsyncGenerator[StreamMessage]:
    """The messages of channels: those that the engine still keeps, then each new one.

    A run's channel is its id. It begins with the state of the run, and the iteration ends with the run. Other channels
    have no end.

    - ``topics``: Only messages of these, and ``$gap``.
    - ``last_event_id``: The id of the last message that the caller has seen. Only later ones follow.
    - ``run_id``: A channel that must be the run of this id.

    Later it waits for an engine that does not answer, and raises ``EngineStoppingError`` if the app stops the engine in
    this process. Raises ``RunNotFoundError``, and at the beginning ``NotSupportedError`` if the engine does not offer a
    channel, and ``TransportError`` if none answers.
    """
    run_ids = () if run_id is None else (run_id,)
    listener = Listener(client, channels, topics=topics, last_event_id=last_event_id, run_ids=run_ids)
    try:
        while batch := await listener.read():
            for message in batch:
                yield message
    finally:
        listener.close()


def follow_sync(
    client: App,
    channels: str | Sequence[str],
    *,
    topics: Iterable[str] | None = None,
    last_event_id: str | None = None,
    run_id: str | None = None,
) -> Generator[StreamMessage]:
    """``follow`` for synchronous code. The thread waits."""
    loop = get_background_loop()
    run_ids = () if run_id is None else (run_id,)
    listener = Listener(client, channels, topics=topics, last_event_id=last_event_id, run_ids=run_ids)
    try:
        while batch := loop.run(listener.read()):
            yield from batch
    finally:
        listener.close()


class _Delivery(msgspec.Struct, gc=False):
    """Messages of channels for listeners, which share it, with their numbers, and the ends of channels.

    ``starts`` are the positions after which they were read: a listener may know some of them.
    """

    starts: dict[str, int]
    messages: list[tuple[int, StreamMessage]]
    ended: list[str]
    _selected: dict[frozenset[str] | None, tuple[list[StreamMessage], int]] = {}

    def join(self, other: "_Delivery") -> "_Delivery":
        messages = sorted(self.messages + other.messages, key=lambda each: each[0])
        return _Delivery(self.starts, messages, self.ended + other.ended)

    def select(self, topics: frozenset[str] | None) -> tuple[list[StreamMessage], int]:
        """All messages of topics, and their bytes."""
        selected = self._selected.get(topics)
        if selected is None:
            messages = [each for _, each in self.messages if topics is None or each.topic in topics]
            selected = self._selected[topics] = messages, sum(map(_size_of, messages))
        return selected


def _size_of(message: StreamMessage) -> int:
    return len(bytes(message.json))


class Listener:
    """A listener of channels, for one reader on any event loop; see ``follow``.

    ``run_ids``: the channels that must be existing runs'. They may be ids of the events that started these.
    """

    def __init__(
        self,
        client: App,
        channels: str | Sequence[str],
        *,
        topics: Iterable[str] | None = None,
        last_event_id: str | None = None,
        run_ids: Iterable[str] = (),
    ) -> None:
        names = [channels] if isinstance(channels, str) else list(dict.fromkeys(channels))
        self._topics = None if topics is None else frozenset([*topics, GAP_TOPIC])
        self._unknown_runs = set(run_ids)
        self._start = _read_id(last_event_id)
        self.channels = tuple(names)
        self._open = set(names)
        if last_event_id and last_event_id.endswith(_END) and len(names) == 1:
            self._open = set()
        self._reader = _reader_of(client)
        self._client = client
        self.loop: asyncio.AbstractEventLoop | None = None
        self._caught_up: int | None = None
        self._early: list[_Delivery] = []
        self._lock = threading.Lock()
        """Of the messages, which the process's reader puts from its thread."""
        self._queue: list[StreamMessage] = []
        self._queued_bytes = 0
        self._dropped = 0
        self._error: BaseException | None = None
        self._arrived: asyncio.Future[None] | None = None
        self._is_woken = False
        """Whether the loop is about to wake the listener."""

    async def open(self) -> None:
        """Begin to listen, on the running event loop. ``read`` does it too.

        Raises ``RunNotFoundError``, ``NotSupportedError`` and ``TransportError``.
        """
        if self.loop is None:
            self.loop = asyncio.get_running_loop()
            if self._open:
                await self._join()

    async def read(self) -> list[StreamMessage]:
        """The messages that have arrived, at least one. None if all channels have ended."""
        if self.loop is None:
            await self.open()
        assert self.loop is not None
        while not self._queue and self._open and self._error is None:
            self._arrived = self.loop.create_future()
            await self._arrived
        with self._lock:
            batch, self._queue = self._queue, []
            dropped, self._dropped = self._dropped, 0
            self._queued_bytes = 0
        if dropped:
            reason = f"this listener reads too slowly: {dropped} messages are missing"
            data = msgspec.Raw(msgspec.json.encode({"reason": reason}))
            oldest = batch[0]
            batch.insert(0, StreamMessage(oldest.id, oldest.channel, GAP_TOPIC, data, oldest.created_at))
        if not batch and self._error is not None:
            raise self._error
        return batch

    async def _join(self) -> None:
        """Read what the engine keeps, then join the other listeners of this process."""
        self._reader.add(self)
        try:
            starts = dict.fromkeys(self._open, self._start)
            while True:
                arguments = {"channels": starts, "waits": False}
                batch: MessageBatch = await execute(self._client, "read_messages", arguments, _io)
                self._unknown_runs -= {message.channel for message in batch.messages if message.topic == RUN_TOPIC}
                if self._unknown_runs and await self._replace_event_ids():
                    return await self._join()
                delivery = _Delivery({}, _to_stream(batch), batch.ended)
                with self._lock:
                    self._put(*delivery.select(self._topics), batch.ended)
                starts = dict.fromkeys(starts, batch.position)
                if not batch.has_more:
                    break
        except BaseException:
            self.close()
            raise
        with self._lock:
            self._caught_up = batch.position
            for delivery in self._early:
                self._take(delivery, batch.position)
            self._early.clear()
        self._reader.follow(tuple(self._open), batch.position)

    async def _replace_event_ids(self) -> bool:
        """Replace ids of events by those of the runs that they have started. Returns whether there are any.

        Raises ``RunNotFoundError``.
        """
        names = dict(zip(self.channels, self.channels, strict=True))
        for unknown in self._unknown_runs:
            run = await find_run(self._client, unknown, _io)
            if run.id == run.event_id:
                raise RunNotFoundError(f"flow control holds the run {run.id} back, or has skipped it")
            names[unknown] = run.id
        self._unknown_runs = set()
        runs = tuple(dict.fromkeys(names.values()))
        if runs == self.channels:
            return False
        self.close()
        self.channels, self._open = runs, set(runs)
        return True

    def deliver(self, delivery: _Delivery) -> bool:
        """Take messages of this process's reader, in its thread. Returns whether the loop must ``wake`` it."""
        with self._lock:
            if self._caught_up is None:
                if len(self._early) < MAX_QUEUED:
                    self._early.append(delivery)
                return False
            self._take(delivery, self._caught_up)
            if self._is_woken or (not self._queue and self._open):
                return False
            self._is_woken = True
            return True

    def _take(self, delivery: _Delivery, known: int) -> None:
        """Take the messages that a listener which joined at the position ``known`` does not know yet."""
        if delivery.messages and delivery.messages[0][0] <= known:
            starts = delivery.starts
            new = [
                (number, message)
                for number, message in delivery.messages
                if number > known or (starts[message.channel] >= known and message.channel in self._open)
            ]
            delivery = _Delivery(starts, new, delivery.ended)
        self._put(*delivery.select(self._topics), delivery.ended)

    def _put(self, messages: list[StreamMessage], size: int, ended: Iterable[str]) -> None:
        self._queue += messages
        self._queued_bytes += size
        if len(self._queue) > MAX_QUEUED or self._queued_bytes > MAX_QUEUED_BYTES:
            self._drop_oldest()
        self._open.difference_update(ended)

    def _drop_oldest(self) -> None:
        """Drop the oldest messages that are published, and only then those of the engine.

        Without these, who joins a run that has published many would not know its state.
        """
        for spared, most in (("$", MAX_QUEUED), (None, 2 * MAX_QUEUED)):
            kept: list[StreamMessage] = []
            place, last = 0, len(self._queue) - 1
            while place < last and (last + 1 - place > most or self._queued_bytes > MAX_QUEUED_BYTES):
                message = self._queue[place]
                place += 1
                if spared is not None and message.topic.startswith(spared):
                    kept.append(message)
                else:
                    self._queued_bytes -= _size_of(message)
            self._queue[:place] = kept
            self._dropped += place - len(kept)

    def fail(self, error: BaseException) -> None:
        """Raise an error in ``read`` after the messages that have arrived, on the event loop of the listener."""
        self._error = error
        self.wake()

    def wake(self) -> None:
        """Let ``read`` return, on the event loop of the listener."""
        self._is_woken = False
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def close(self) -> None:
        self._reader.remove(self)


def _read_id(text: str | None) -> int:
    if not text:
        return 0
    number = text.removesuffix(_END)
    return int(number) if number.isascii() and number.isdigit() and len(number) < 20 else _UNKNOWN


def _to_stream(batch: MessageBatch) -> list[tuple[int, StreamMessage]]:
    """The messages of a batch with their numbers."""
    ends = {}
    for place, message in enumerate(batch.messages):
        if message.topic == RUN_TOPIC and message.channel in batch.ended:
            ends[message.channel] = place
    last = set(ends.values())
    return [
        (
            message.id,
            StreamMessage(
                f"{message.id}{_END}" if place in last else str(message.id),
                message.channel,
                message.topic,
                message.data,
                message.created_at,
            ),
        )
        for place, message in enumerate(batch.messages)
        if message.kind not in _MARKS
    ]


class _Reader:
    """Reads the messages of all listeners of a client, on the background loop."""

    def __init__(self, client: App) -> None:
        self._client = client
        self._id = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._listeners: dict[str, set[Listener]] = {}
        self._positions: dict[str, int] = {}
        self._is_running = False
        self._rounds = 0
        self._is_kicking = False

    def add(self, listener: Listener) -> None:
        with self._lock:
            for name in listener.channels:
                self._listeners.setdefault(name, set()).add(listener)

    def remove(self, listener: Listener) -> None:
        with self._lock:
            for name in listener.channels:
                listeners = self._listeners.get(name, set())
                listeners.discard(listener)
                if not listeners:
                    self._listeners.pop(name, None)
                    self._positions.pop(name, None)

    def follow(self, channels: Iterable[str], position: int) -> None:
        """Read the channels after the position, unless they are already read."""
        loop = get_background_loop()
        with self._lock:
            new = [name for name in channels if name in self._listeners and name not in self._positions]
            if not new:
                return
            self._positions |= dict.fromkeys(new, position)
            starts, self._is_running = not self._is_running, True
            kicks, self._is_kicking = not starts and not self._is_kicking, self._is_kicking or not starts
        if starts:
            loop.submit(self._run())
        elif kicks:
            loop.submit(self._kick())

    async def _kick(self) -> None:
        """End the request under way, so that the next one has the new channels."""
        await asyncio.sleep(_JOIN_SECONDS)
        with self._lock:
            self._is_kicking = False
        round_before = self._rounds
        while self._is_running and self._rounds == round_before:
            with contextlib.suppress(Error):
                await execute(self._client, "read_messages", {"channels": {}, "reader": self._id, "waits": False}, _io)
            await asyncio.sleep(_KICK_SECONDS)

    async def _run(self) -> None:
        while True:
            with self._lock:
                self._rounds += 1
                starts = dict(self._positions)
                if not starts:
                    self._is_running = False
                    return
            arguments = {"channels": starts, "reader": self._id}
            try:
                batch: MessageBatch = await execute(self._client, "read_messages", arguments, _io, _POLL_SECONDS)
            except (EngineNotStartedError, EngineStoppingError, NotSupportedError) as error:
                self._fail(error)
            except (Error, asyncio.CancelledError) as error:  # An engine that stops may cancel its requests.
                self._client.logger.debug("messages cannot be read at the moment: %r", error)
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception as error:
                self._client.logger.exception("messages cannot be read")
                self._fail(error)
            else:
                self._pass_on(starts, batch)

    def _pass_on(self, starts: dict[str, int], batch: MessageBatch) -> None:
        deliveries: dict[Listener, _Delivery] = {}
        by_channel: dict[str, _Delivery] = {}
        for number, message in _to_stream(batch):
            of_channel = by_channel.get(message.channel)
            if of_channel is None:
                of_channel = by_channel[message.channel] = _Delivery(starts, [], [])
            of_channel.messages.append((number, message))
        for name in batch.ended:
            by_channel.setdefault(name, _Delivery(starts, [], [])).ended.append(name)
        with self._lock:
            for name in starts:
                if name in self._positions:
                    self._positions[name] = batch.position
            for name in batch.ended:
                self._positions.pop(name, None)
            for name, of_channel in by_channel.items():
                for listener in self._listeners.get(name, ()):
                    before = deliveries.get(listener)
                    deliveries[listener] = of_channel if before is None else before.join(of_channel)
        by_loop: dict[asyncio.AbstractEventLoop, list[Listener]] = {}
        for listener, delivery in deliveries.items():
            if listener.deliver(delivery):
                assert listener.loop is not None
                by_loop.setdefault(listener.loop, []).append(listener)
        for loop, listeners in by_loop.items():
            with contextlib.suppress(RuntimeError):  # The loop is closed.
                loop.call_soon_threadsafe(_wake, loop, listeners)

    def _fail(self, error: Exception) -> None:
        with self._lock:
            listeners = {each for group in self._listeners.values() for each in group}
            self._positions.clear()
        for listener in listeners:
            if listener.loop is not None:
                with contextlib.suppress(RuntimeError):
                    listener.loop.call_soon_threadsafe(listener.fail, error)


def _wake(loop: asyncio.AbstractEventLoop, listeners: list[Listener], first: int = 0) -> None:
    """Wake listeners, some in each turn of their loop: functions of the app that run on it have their turns between."""
    following = first + _WAKES_A_TURN
    for listener in listeners[first:following]:
        listener.wake()
    if following < len(listeners):
        loop.call_soon(_wake, loop, listeners, following)


_readers: WeakKeyDictionary[App, _Reader] = WeakKeyDictionary()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_readers.clear)


def _reader_of(client: App) -> _Reader:
    reader = _readers.get(client)
    if reader is None:
        reader = _readers[client] = _Reader(client)
    return reader
