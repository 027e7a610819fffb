"""A link between two processes of one machine.

It carries requests, answers and heartbeats in both directions. A frame is four bytes of length and a MessagePack array.
Payloads are opaque bytes. A side that receives nothing for the lease closes the link.
"""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import cast

import msgspec

from durably.engine.model.logs import SparseLog
from durably.errors import Error
from durably.protocol.limits import MAX_REQUEST_BYTES
from durably.protocol.text import get_logger

from .sockets import is_same_user

_log = SparseLog(get_logger("durably.engine"))

_LENGTH_BYTES = 4
_MAX_FRAME_BYTES = MAX_REQUEST_BYTES + 1024 * 1024


class LinkLostError(Error):
    """The other side has ended, or was silent for the lease.

    It may have executed the request.
    """


class AnswerError(Error):
    """The other side answered with an error. ``error_name`` is the name of its class."""

    def __init__(self, error_name: str, message: str) -> None:
        super().__init__(message)
        self.error_name = error_name


class Timing(msgspec.Struct, frozen=True):
    """The times of a link, in seconds.

    ``lease`` is the longest silence of a live process, ``heartbeat`` the interval of heartbeats.
    """

    lease: float
    heartbeat: float


class _Kind(IntEnum):
    REQUEST = 0
    ANSWER = 1
    ERROR = 2
    CANCEL = 3
    HEARTBEAT = 4


class _Frame(msgspec.Struct, frozen=True, array_like=True):
    """``name`` is the name of the operation or the error. ``id`` is the request's."""

    kind: _Kind
    id: int = 0
    name: str = ""
    payload: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Frame)
_HEARTBEAT = _Frame(_Kind.HEARTBEAT)

Answer = Callable[[str, bytes], Awaitable[bytes]]
"""Answers a request of the other side. An exception is sent as an error."""


class Link(asyncio.Protocol):
    """One side of a link.

    ``lost`` is set when the link is closed. ``was_silent``: silence closed it, so the other process may be alive.
    """

    def __init__(
        self,
        answer: Answer,
        timing: Timing,
        on_lost: Callable[[], None] = lambda: None,
        on_received: Callable[[], None] = lambda: None,
    ) -> None:
        self.was_silent = False
        self._answer = answer
        self._timing = timing
        self._on_lost = on_lost
        self._on_received = on_received
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._to_send: list[bytes] = []
        self._ids = itertools.count()
        self._pending: dict[int, asyncio.Future[bytes]] = {}
        self._answering: dict[int, asyncio.Task[None]] = {}
        self._silent_ticks = 0
        self._tick_timer: asyncio.TimerHandle | None = None
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self.lost = asyncio.Event()

    async def request(self, name: str, payload: bytes) -> bytes:
        """Send a request. Returns its answer.

        Raises ``LinkLostError`` and ``AnswerError``. If the request is cancelled, the other side cancels its work.
        """
        if self.lost.is_set():
            raise LinkLostError("the link is closed")
        number = next(self._ids)
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._pending[number] = future
        self._send(_Frame(_Kind.REQUEST, number, name, payload))
        try:
            return await future
        except asyncio.CancelledError:
            if not self.lost.is_set():
                self._send(_Frame(_Kind.CANCEL, number))
            raise
        finally:
            self._pending.pop(number, None)

    async def wait_connected(self) -> None:
        """Wait until the other side has sent something.

        Closes the link if the wait is cancelled. Raises ``LinkLostError``.
        """
        try:
            await asyncio.shield(self._connected)
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Close without waiting."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def descriptor(self) -> int:
        """The descriptor of the socket, or -1."""
        return -1 if self._transport is None else int(self._transport.get_extra_info("socket").fileno())

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has its own class
        if is_same_user(self.descriptor):
            self._tick()
        else:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        self.lost.set()
        for task in self._answering.values():
            task.cancel()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(LinkLostError("the other process has closed the link"))
        if not self._connected.done():
            self._connected.set_exception(LinkLostError("the other process has closed the link"))
            self._connected.exception()
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        self._silent_ticks = 0
        self._on_received()
        if not self._connected.done():
            self._connected.set_result(None)
        self._received += data
        position = 0
        while len(self._received) - position >= _LENGTH_BYTES:
            size = int.from_bytes(self._received[position : position + _LENGTH_BYTES])
            end = position + _LENGTH_BYTES + size
            if size > _MAX_FRAME_BYTES:
                _log.log(logging.WARNING, "a connection was closed: it announced a frame of %d bytes", size)
                self.close()
                return
            if len(self._received) < end:
                break
            try:
                with memoryview(self._received) as view:
                    frame = _decoder.decode(view[position + _LENGTH_BYTES : end])
            except msgspec.DecodeError as error:
                _log.log(logging.WARNING, "a connection was closed: it sent an invalid frame (%s)", error)
                self.close()
                return
            position = end
            self._take(frame)
        del self._received[:position]

    def _take(self, frame: _Frame) -> None:
        if frame.kind is _Kind.REQUEST:
            self._answering[frame.id] = task = self._loop.create_task(self._work(frame))
            task.add_done_callback(lambda _: self._answering.pop(frame.id, None))
        elif frame.kind is _Kind.CANCEL:
            if task_of_id := self._answering.get(frame.id):
                task_of_id.cancel()
        elif frame.kind is not _Kind.HEARTBEAT:
            future = self._pending.get(frame.id)
            if future is None or future.done():
                return
            if frame.kind is _Kind.ANSWER:
                future.set_result(frame.payload)
            else:
                future.set_exception(AnswerError(frame.name, frame.payload.decode(errors="replace")))

    async def _work(self, frame: _Frame) -> None:
        try:
            answer = _Frame(_Kind.ANSWER, frame.id, payload=await self._answer(frame.name, frame.payload))
        except Exception as error:
            message = error.message if isinstance(error, Error) else f"{type(error).__name__}: {error}"
            answer = _Frame(_Kind.ERROR, frame.id, type(error).__name__, message.encode(errors="replace"))
        if not self.lost.is_set():
            self._send(answer)

    def _send(self, frame: _Frame) -> None:
        """Send a frame. All frames of one event loop iteration are written together."""
        encoded = _encoder.encode(frame)
        if not self._to_send:
            self._loop.call_soon(self._flush)
        self._to_send.append(len(encoded).to_bytes(_LENGTH_BYTES))
        self._to_send.append(encoded)

    def _flush(self) -> None:
        if self._transport is not None and not self.lost.is_set():
            self._transport.write(b"".join(self._to_send))
        self._to_send.clear()

    def _tick(self) -> None:
        """Count silence in ticks, not by the clock.

        If this process was stopped or its event loop blocked, received data is read before the next tick.
        """
        if self._silent_ticks * self._timing.heartbeat >= self._timing.lease:
            self.was_silent = True
            self.close()
            return
        self._silent_ticks += 1
        self._send(_HEARTBEAT)
        self._tick_timer = self._loop.call_later(self._timing.heartbeat, self._tick)


class Heartbeat:
    """Records beats, and the gaps between them.

    The leader beats with the engine's loop, a follower with data from the leader. ``longest_gap`` is the longest time
    between two beats, in seconds, at which no process has treated another as dead.
    """

    def __init__(self, longest_gap: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_gap = longest_gap
        self._clock = clock
        self._last_beat = clock()
        self._gap_ended = -math.inf

    def beat(self) -> None:
        """Record that this process runs and has contact."""
        now = self._clock()
        if now - self._last_beat > self._longest_gap:
            self._gap_ended = now
        self._last_beat = now

    def lose_contact(self) -> None:
        """Mark everything known before now as possibly stale."""
        self._gap_ended = self._clock()

    def certain_at_arrival(self) -> float:
        """Data received now is valid as of this time.

        Just after a gap, it may have been sent before the gap.
        """
        return self._clock() - self._longest_gap

    def may_be_stale(self, since: float) -> bool:
        """Whether a fact known at ``since`` may have changed without notice.

        ``since`` is a time of the same clock.
        """
        # In this order: ``beat``, in the engine's thread, records a gap before it ends it.
        is_in_gap = self._clock() - self._last_beat > self._longest_gap
        return is_in_gap or since < self._gap_ended
