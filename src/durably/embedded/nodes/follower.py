"""A follower: a node that reaches the engine through a link to the leader.

This module has the follower's side and the leader's side. Arguments and results of the engine's operations are JSON.
Users' JSON in results is passed byte for byte. Arguments that are bodies are sent next to the JSON.
"""

import asyncio
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

import durably.protocol.engine_errors
from durably.embedded.dispatcher import CallReturnedError, Capacity, WorkerLostError, WorkerSlots
from durably.embedded.worker import LocalWorker
from durably.engine.api.http.codec import decoder_of, from_wire
from durably.engine.api.interface import Engine
from durably.engine.api.operations import Operation, base_of, operations_of
from durably.engine.core.calls import Answer, AttemptFailed, CallData, ReportedOps, Returned, Unreached
from durably.errors import Error
from durably.protocol.engine_errors import DatabaseLostError, EngineClosedError, EngineError
from durably.protocol.opcodes import Op
from durably.protocol.sync import SyncRequest

from . import sockets
from .link import AnswerError, Link, LinkLostError, Timing


class EngineMovedError(Error):
    """The engine is not, or no longer, behind this leader or link.

    ``is_unclear``: the request may have been executed.
    """

    def __init__(self, message: str, *, is_unclear: bool) -> None:
        super().__init__(message)
        self.is_unclear = is_unclear


class JoinRequest(msgspec.Struct, frozen=True):
    """A follower's report to the leader, at its start and after each change."""

    capacity: Capacity
    syncs: list[SyncRequest] = []


class Follower:
    """A follower's connection to the leader. Use ``connect``."""

    def __init__(self, socket: Path, link: Link, worker: LocalWorker) -> None:
        self.socket = socket
        self._link = link
        self._worker = worker

    @classmethod
    async def connect(cls, socket: Path, worker: LocalWorker, timing: Timing) -> "Follower | None":
        """Connect to the leader at a socket.

        Returns ``None`` if no process listens. Raises ``TimeoutError`` if one listens and sends nothing for the lease.
        """

        async def answer(name: str, payload: bytes) -> bytes:
            app_id, data = _call_decoder.decode(payload)
            return encode_answer(await worker.run(app_id, data))

        try:
            async with asyncio.timeout(timing.lease):
                loop = asyncio.get_running_loop()
                with sockets.address_of(socket) as address:
                    _, link = await loop.create_unix_connection(
                        lambda: Link(answer, timing, on_received=worker.heartbeat.beat), address
                    )
                await link.wait_connected()
        except TimeoutError:
            raise
        except (OSError, LinkLostError):
            return None
        return cls(socket, link, worker)

    async def request(self, operation: Operation, arguments: Mapping[str, Any]) -> Any:
        """Raises ``EngineMovedError``, and the operation's errors."""
        return decode_result(operation, await self._request(operation.name, encode_arguments(operation, arguments)))

    async def update(self) -> None:
        """Report the functions that this process serves. Raises ``ConfigInvalidError``."""
        await self._request("join", msgspec.json.encode(JoinRequest(self._worker.capacity(), self._worker.syncs())))

    async def wait_lost(self) -> None:
        await self._link.lost.wait()

    @property
    def was_silent(self) -> bool:
        return self._link.was_silent

    async def close(self) -> None:
        self._link.close()
        await self._link.lost.wait()

    def descriptors(self) -> list[int]:
        return [self._link.descriptor]

    async def _request(self, name: str, payload: bytes) -> bytes:
        try:
            return await self._link.request(name, payload)
        except LinkLostError as error:
            raise EngineMovedError(error.message, is_unclear=True) from None
        except AnswerError as error:
            refusal = to_error(error.error_name, error.message)
            if isinstance(refusal, EngineClosedError | DatabaseLostError):
                raise EngineMovedError(refusal.message, is_unclear=False) from None
            raise refusal from None


class FollowerWorker:
    """A follower as the leader sees it.

    It is a ``Worker``, and has its slots once it has joined.
    """

    def __init__(self) -> None:
        self.link: Link | None = None
        self.slots: WorkerSlots | None = None

    async def run(self, app_id: str, data: CallData) -> Answer:
        assert self.link is not None
        assert self.slots is not None
        process_id = self.slots.capacity.process_id
        try:
            return decode_answer(await self.link.request("call", msgspec.msgpack.encode((app_id, data))))
        except LinkLostError:
            raise WorkerLostError(f"process {process_id} was lost while it ran the function") from None
        except AnswerError as error:
            if error.error_name == CallReturnedError.__name__:
                raise CallReturnedError(str(error)) from None
            raise WorkerLostError(f"process {process_id} could not run the function: {error}") from None


_call_decoder = msgspec.msgpack.Decoder(tuple[str, CallData])


class _EncodedOps(msgspec.Struct, frozen=True, tag=True):
    """``ReportedOps`` with JSON of the ops, because their data is JSON already."""

    ops: bytes
    no_retry: bool
    retry_at: int | None


_ops_decoder = msgspec.json.Decoder(list[Op])
_answer_decoder: msgspec.msgpack.Decoder[Returned | _EncodedOps | AttemptFailed | Unreached] = msgspec.msgpack.Decoder(
    Returned | _EncodedOps | AttemptFailed | Unreached
)


def encode_answer(answer: Answer) -> bytes:
    """The answer as bytes for another process."""
    if isinstance(answer, ReportedOps):
        answer_or_ops = _EncodedOps(msgspec.json.encode(answer.ops), answer.no_retry, answer.retry_at)
        return msgspec.msgpack.encode(answer_or_ops)
    return msgspec.msgpack.encode(answer)


def decode_answer(encoded: bytes) -> Answer:
    answer = _answer_decoder.decode(encoded)
    if isinstance(answer, _EncodedOps):
        return ReportedOps(_ops_decoder.decode(answer.ops), answer.no_retry, answer.retry_at)
    return answer


OPERATIONS = operations_of(Engine)

_parts_decoder = msgspec.msgpack.Decoder(tuple[bytes, dict[str, bytes]])


def encode_arguments(operation: Operation, arguments: Mapping[str, Any]) -> bytes:
    """The arguments as JSON, and the arguments that are bytes.

    Bytes are kept apart because they may have any content.
    """
    bodies = {name: bytes(value) for name, value in arguments.items() if name in _bodies_of(operation)}
    others = {name: value for name, value in arguments.items() if name not in bodies}
    return msgspec.msgpack.encode((msgspec.json.encode(others), bodies))


async def answer_operation(operation: Operation, engine: Engine, encoded: bytes) -> bytes:
    """Execute an operation for another process. Raises ``EngineError``."""
    others, bodies = _parts_decoder.decode(encoded)
    decoded = _arguments_type(operation)(others)
    arguments = {
        name: value for name in decoded.__struct_fields__ if (value := getattr(decoded, name)) is not msgspec.UNSET
    }
    arguments |= {name: _bodies_of(operation)[name](body) for name, body in bodies.items()}
    return msgspec.json.encode(await operation.execute(engine, arguments))


@functools.cache
def _bodies_of(operation: Operation) -> dict[str, Any]:
    """The arguments that are bytes, and their types."""
    return {argument.name: argument.type for argument in operation.arguments if argument.type in (bytes, msgspec.Raw)}


@functools.cache
def _arguments_type(operation: Operation) -> Any:
    """The type of the other arguments. Within an app, values have no size limits."""
    fields = [
        (argument.name, base_of(argument.type)[0] | None | msgspec.UnsetType, msgspec.UNSET)
        for argument in operation.arguments
        if argument.name not in _bodies_of(operation)
    ]
    return msgspec.json.Decoder(msgspec.defstruct(operation.name, fields, kw_only=True)).decode


def decode_result(operation: Operation, encoded: bytes) -> Any:
    return from_wire(decoder_of(operation.result).decode(encoded))


def to_error(name: str, message: str) -> EngineError:
    """The engine's error that the leader reported."""
    kind = getattr(durably.protocol.engine_errors, name, EngineError)
    is_known = isinstance(kind, type) and issubclass(kind, EngineError)
    return kind(message) if is_known else EngineError(f"{name}: {message}")
