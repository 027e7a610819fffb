"""A follower: a node that reaches the engine through a link to the leader. Its own side, and the leader's."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from durably.engine.core.answers import Answer, AttemptFailed, ReportedOps, Returned, Unreached
from durably.engine.core.call_body import CallData
from durably.engine.core.errors import DatabaseLostError, EngineClosedError
from durably.engine.operations import Operation
from durably.protocol.opcodes import Op
from durably.protocol.sync import SyncRequest

from . import sockets
from .dispatcher import Capacity, WorkerSlots
from .errors import CallReturnedError, EngineMovedError, WorkerLostError
from .link import AnswerError, Link, LinkLostError, Timing
from .operations import decode_result, encode_arguments, to_error
from .worker import LocalWorker


class JoinRequest(msgspec.Struct, frozen=True):
    """What a follower reports to the leader at first, and after each change."""

    capacity: Capacity
    syncs: list[SyncRequest] = []


class Follower:
    """Made by ``connect``."""

    def __init__(self, socket: Path, link: Link, worker: LocalWorker) -> None:
        self.socket = socket
        self._link = link
        self._worker = worker

    @classmethod
    async def connect(cls, socket: Path, worker: LocalWorker, timing: Timing) -> "Follower | None":
        """``None`` if no process listens. Raises ``TimeoutError`` if one listens and sends nothing for the lease."""

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
        return decode_result(operation, await self._request(operation.name, encode_arguments(arguments)))

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
    """A follower as the leader sees it: a ``Worker``, and its slots once it has joined."""

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
    """``ReportedOps`` with JSON of the ops: their data is JSON already."""

    ops: bytes
    no_retry: bool
    retry_at: int | None


_ops_decoder = msgspec.json.Decoder(list[Op])
_answer_decoder: msgspec.msgpack.Decoder[Returned | _EncodedOps | AttemptFailed | Unreached] = msgspec.msgpack.Decoder(
    Returned | _EncodedOps | AttemptFailed | Unreached
)


def encode_answer(answer: Answer) -> bytes:
    """For another process."""
    if isinstance(answer, ReportedOps):
        answer_or_ops = _EncodedOps(msgspec.json.encode(answer.ops), answer.no_retry, answer.retry_at)
        return msgspec.msgpack.encode(answer_or_ops)
    return msgspec.msgpack.encode(answer)


def decode_answer(encoded: bytes) -> Answer:
    answer = _answer_decoder.decode(encoded)
    if isinstance(answer, _EncodedOps):
        return ReportedOps(_ops_decoder.decode(answer.ops), answer.no_retry, answer.retry_at)
    return answer
