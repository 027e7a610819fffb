"""A link between two processes of one machine: either side asks, the other answers; both show that they live.

Frames are four bytes of length and a MessagePack array. What is asked and answered is bytes, of which the link
knows nothing. A side from which nothing is heard for as long as the lease is given up on.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import cast

import msgspec

from durably.errors import Error
from durably.protocol.limits import MAX_REQUEST_BYTES

from .sockets import is_same_user

_LENGTH_BYTES = 4
_MAX_FRAME_BYTES = MAX_REQUEST_BYTES + 1024 * 1024


class LinkLostError(Error):
    """The other side is gone, or silent for too long. What it was asked may or may not have happened."""


class AnswerError(Error):
    """The other side answered with an error. ``error_name`` is the name of its class."""

    def __init__(self, error_name: str, message: str) -> None:
        super().__init__(message)
        self.error_name = error_name


class Timing(msgspec.Struct, frozen=True):
    """Seconds. ``lease`` is how long the other side may be silent, ``beat`` how often it is not."""

    lease: float = 2.5
    beat: float = 0.25


class _Kind(IntEnum):
    ASK = 0
    ANSWER = 1
    ERROR = 2
    CANCEL = 3
    BEAT = 4


class _Frame(msgspec.Struct, frozen=True, array_like=True):
    """``name`` is what is asked, or the error's; ``id`` is given by the side that asks."""

    kind: _Kind
    id: int = 0
    name: str = ""
    payload: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Frame)
_BEAT = _Frame(_Kind.BEAT)

Answer = Callable[[str, bytes], Awaitable[bytes]]
"""Answers what the other side asks. What it raises is told to the other side, if it is an ``Error``."""


class Link(asyncio.Protocol):
    """One side. ``lost`` is set once the other side is gone, ``was_silent`` where it was given up on although its
    process may live."""

    def __init__(
        self,
        answer: Answer,
        timing: Timing,
        on_lost: Callable[[], None] = lambda: None,
        on_heard: Callable[[], None] = lambda: None,
    ) -> None:
        self.was_silent = False
        self._answer = answer
        self._timing = timing
        self._on_lost = on_lost
        self._on_heard = on_heard
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._to_send: list[bytes] = []
        self._ids = itertools.count()
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._answering: dict[int, asyncio.Task[None]] = {}
        self._ticks_of_silence = 0
        self._tick_timer: asyncio.TimerHandle | None = None
        self._heard: asyncio.Future[None] = self._loop.create_future()
        self.lost = asyncio.Event()

    async def ask(self, name: str, payload: bytes) -> bytes:
        """Raises ``LinkLostError`` and ``AnswerError``. Cancelled, it cancels what the other side does about it."""
        if self.lost.is_set():
            raise LinkLostError("the link is closed")
        number = next(self._ids)
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._asked[number] = future
        self._send(_Frame(_Kind.ASK, number, name, payload))
        try:
            return await future
        except asyncio.CancelledError:
            if not self.lost.is_set():
                self._send(_Frame(_Kind.CANCEL, number))
            raise
        finally:
            self._asked.pop(number, None)

    async def wait_heard(self) -> None:
        """Returns once the other side has shown a sign of life. Raises ``LinkLostError``, and gives the link up
        where the wait is given up."""
        try:
            await asyncio.shield(self._heard)
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Give up at once."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def descriptor(self) -> int:
        """Of the socket, or -1."""
        return -1 if self._transport is None else int(self._transport.get_extra_info("socket").fileno())

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is of a class of its own
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
        for future in self._asked.values():
            if not future.done():
                future.set_exception(LinkLostError("the other process is gone"))
        if not self._heard.done():
            self._heard.set_exception(LinkLostError("the other process is gone"))
            self._heard.exception()
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        self._ticks_of_silence = 0
        self._on_heard()
        if not self._heard.done():
            self._heard.set_result(None)
        self._received += data
        position = 0
        while len(self._received) - position >= _LENGTH_BYTES:
            size = int.from_bytes(self._received[position : position + _LENGTH_BYTES])
            end = position + _LENGTH_BYTES + size
            if size > _MAX_FRAME_BYTES:
                self.close()
                return
            if len(self._received) < end:
                break
            with memoryview(self._received) as view:
                frame = _decoder.decode(view[position + _LENGTH_BYTES : end])
            position = end
            self._take(frame)
        del self._received[:position]

    def _take(self, frame: _Frame) -> None:
        if frame.kind is _Kind.ASK:
            self._answering[frame.id] = task = self._loop.create_task(self._work(frame))
            task.add_done_callback(lambda _: self._answering.pop(frame.id, None))
        elif frame.kind is _Kind.CANCEL:
            if task_of_id := self._answering.get(frame.id):
                task_of_id.cancel()
        elif frame.kind is not _Kind.BEAT:
            future = self._asked.get(frame.id)
            if future is None or future.done():
                return
            if frame.kind is _Kind.ANSWER:
                future.set_result(frame.payload)
            else:
                future.set_exception(AnswerError(frame.name, frame.payload.decode()))

    async def _work(self, frame: _Frame) -> None:
        try:
            answer = _Frame(_Kind.ANSWER, frame.id, payload=await self._answer(frame.name, frame.payload))
        except Exception as error:
            message = error.message if isinstance(error, Error) else f"{type(error).__name__}: {error}"
            answer = _Frame(_Kind.ERROR, frame.id, type(error).__name__, message.encode(errors="replace"))
        if not self.lost.is_set():
            self._send(answer)

    def _send(self, frame: _Frame) -> None:
        """What is sent in one turn of the event loop goes out together."""
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
        """Silence is counted in ticks of our own, not by the clock: if this process was stopped or its event loop
        blocked, what the other side sent meanwhile is read before the next tick."""
        if self._ticks_of_silence * self._timing.beat >= self._timing.lease:
            self.was_silent = True
            self.close()
            return
        self._ticks_of_silence += 1
        self._send(_BEAT)
        self._tick_timer = self._loop.call_later(self._timing.beat, self._tick)
