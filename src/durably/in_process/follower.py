"""A follower: a node that reaches the engine through a link to the leader."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from durably.engine.core.call_body import CallData
from durably.engine.core.errors import DatabaseLostError, EngineClosedError
from durably.engine.operations import Operation

from . import sockets
from .calls import encode_answer
from .errors import EngineMovedError
from .leader import JoinRequest
from .link import AnswerError, Link, LinkLostError, Timing
from .operations import decode_result, encode_arguments, to_error
from .worker import LocalWorker

_call_decoder = msgspec.msgpack.Decoder(tuple[str, CallData])


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
