"""A follower: a process that reaches the engine through the leader's HTTP API, at a Unix socket or over TCP.

Its operations are requests as any client makes them. Its functions run in calls that it asks for: see
``remote_workers.py``.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec
from yarl import URL

from durably.engine.api.codec import EngineRefusedError, HttpEngine, HttpRequest, HttpResponse, raise_error
from durably.engine.api.operations import Operation
from durably.engine.core.calls import Answer, Unreached, failed
from durably.engine.model.dispatcher import CallReturnedError
from durably.protocol.call import CheckpointRequest
from durably.protocol.engine_errors import ConfigInvalidError, DatabaseLostError, EngineClosedError
from durably.protocol.errors import ErrorData
from durably.protocol.events import ErrorBody
from durably.protocol.text import get_logger

from . import sockets
from .network import RemoteLeader
from .process import EngineMovedError
from .worker import LocalWorker
from .worker_resource import (
    CALLS_PATH,
    MAX_EXCHANGE_BYTES,
    WORKER_PATH,
    WORKERS_PATH,
    AssignedCall,
    Assignment,
    CallAnswer,
    Exchange,
    Registered,
    Registration,
    Timing,
)

T = TypeVar("T")

_SENDERS = 4
"""Exchanges with answers or checkpoints at a time: the leader prepares a commit while it waits for another."""
_STARTING_SECONDS = 0.05
"""Seconds between two requests to a leader that recovers its runs."""

_logger = get_logger("durably.engine")


_Checkpoint = tuple[bytes, "asyncio.Future[ErrorBody | None]"]
"""The JSON of a ``CheckpointRequest``, and its result."""


class Follower:
    """A follower's connection to the leader. Use ``connect``.

    It is lost when the leader closes it, has forgotten this worker, or has not answered for the lease
    (``was_silent``). The calls of this process are then cancelled, because the leader makes them again.

    ``leader``: the socket of a leader on this machine, or the leader on another.
    """

    def __init__(self, leader: Path | RemoteLeader, worker: LocalWorker, timing: Timing) -> None:
        self.leader = leader
        self.was_silent = False
        self._worker = worker
        self._timing = timing
        self._open = contextlib.ExitStack()
        connector: aiohttp.BaseConnector
        headers = {}
        if isinstance(leader, Path):
            self._origin = "http://localhost"
            connector = aiohttp.UnixConnector(self._open.enter_context(sockets.address_of(leader)), limit=0)
        else:
            self._origin = f"http{'s' if leader.tls else ''}://{leader.address}"
            headers = {"host": "localhost", "authorization": f"Bearer {leader.key}"}
            connector = aiohttp.TCPConnector(limit=0, ssl=leader.tls or True)
        self._http = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(None), auto_decompress=False, headers=headers
        )
        self._engine = HttpEngine(self._exchange_http)
        self._id = ""
        self._silent_beats = 0
        self._answers: list[bytes] = []
        self._checkpoints: list[_Checkpoint] = []
        self._has_news = asyncio.Event()
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._lost = asyncio.Event()

    @classmethod
    async def connect(cls, leader: Path | RemoteLeader, worker: LocalWorker, timing: Timing) -> "Follower | None":
        """Connect to the leader, and register this process.

        Returns ``None`` if no process listens at a socket. Raises ``TimeoutError`` if one listens and does not answer
        for the lease, ``EngineMovedError`` if it closes the connection, another machine does not listen, or
        another server answers there, and ``EngineError`` if it refuses this process.
        """
        try:
            follower = cls(leader, worker, timing)
        except OSError:
            return None
        try:
            await follower._register()
        except BaseException as error:
            await follower.close()
            if isinstance(error, EngineMovedError) and not error.is_unclear and isinstance(leader, Path):
                return None
            raise
        loop = asyncio.get_running_loop()
        senders = [follower._send_news() for _ in range(_SENDERS)]
        parts = (follower._ask_for_calls(), *senders, follower._watch())
        follower._tasks = [loop.create_task(follower._until_lost(part)) for part in parts]
        return follower

    async def _register(self) -> None:
        """Register, once the leader has recovered its runs."""
        while True:
            async with asyncio.timeout(self._timing.lease):
                response = await self._send("POST", WORKERS_PATH, self._registration())
            if response.status != 503:
                break
            await asyncio.sleep(_STARTING_SECONDS)
        try:
            if response.status >= 400:
                raise_error(msgspec.json.decode(response.body, type=ErrorBody))
            self._id = msgspec.json.decode(response.body, type=Registered).worker_id
        except (msgspec.DecodeError, UnicodeDecodeError):
            address = self.leader.address if isinstance(self.leader, RemoteLeader) else self.leader
            raise EngineMovedError(
                f"what answers at {address} is not an engine of this log (status {response.status})", is_unclear=False
            ) from None

    def _registration(self) -> bytes:
        return msgspec.json.encode(Registration(self._worker.capacity(), self._worker.syncs()))

    async def request(self, operation: Operation, arguments: Mapping[str, Any]) -> Any:
        """Raises ``EngineMovedError``, and the operation's errors."""
        try:
            if operation.name == "checkpoint":
                return await self._checkpoint(arguments["request"])
            return await self._engine.execute(operation, arguments)
        except (EngineClosedError, DatabaseLostError) as error:
            raise EngineMovedError(error.message, is_unclear=False) from None
        except EngineRefusedError as error:
            if error.status == 503:
                raise EngineMovedError(error.message, is_unclear=False) from None
            raise

    async def update(self) -> None:
        """Report the functions that this process serves. Raises ``ConfigInvalidError``."""
        _read(await self._send("PUT", WORKER_PATH.format(worker_id=self._id), self._registration()), Registered)

    async def wait_lost(self) -> None:
        await self._lost.wait()

    async def close(self) -> None:
        """Leave the leader, after the answers of calls that have ended."""
        if self._id and not self._lost.is_set():
            with contextlib.suppress(EngineMovedError, TimeoutError):
                async with asyncio.timeout(self._timing.lease):
                    while self._answers or self._checkpoints:
                        await self._send_some()
                    await self._send("DELETE", WORKER_PATH.format(worker_id=self._id))
        await self.lose()

    async def lose(self) -> None:
        """Leave the leader at once, because it is lost."""
        if self._lost.is_set():
            return
        self._lost.set()
        _fail(self._checkpoints)
        for task in (*self._tasks, *self._calls.values()):
            if task is not asyncio.current_task():
                task.cancel()
        await self._http.close()
        self._open.close()

    # calls

    async def _until_lost(self, part: Coroutine[Any, Any, None]) -> None:
        try:
            await part
        except EngineMovedError:
            pass
        except Exception:  # The leader has another version of the wire, perhaps.
            _logger.exception("process %d cannot read the leader's answer", os.getpid())
        await self.lose()

    async def _ask_for_calls(self) -> None:
        nothing = msgspec.json.encode(Exchange())
        while True:
            await self._exchange(nothing)

    async def _send_news(self) -> None:
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            while self._answers or self._checkpoints:
                await self._send_some()

    async def _send_some(self) -> None:
        """Send as many answers and checkpoints as an exchange may have."""
        answers, size = _take(self._answers, len, 0)
        checkpoints, _ = _take(self._checkpoints, lambda each: len(each[0]), size)
        body = b'{"answers":[%b],"checkpoints":[%b]}' % (b",".join(answers), b",".join(each[0] for each in checkpoints))
        try:
            results = await self._exchange(body)
        except BaseException:
            _fail(checkpoints)
            raise
        for (_, stored), result in zip(checkpoints, results, strict=True):
            if not stored.done():
                stored.set_result(result)

    async def _checkpoint(self, request: CheckpointRequest) -> None:
        if self._lost.is_set():
            raise EngineMovedError("the leader is lost", is_unclear=False)
        stored: asyncio.Future[ErrorBody | None] = asyncio.get_running_loop().create_future()
        self._checkpoints.append((msgspec.json.encode(request), stored))
        self._has_news.set()
        if (error := await stored) is not None:
            raise_error(error)

    async def _exchange(self, body: bytes) -> list[ErrorBody | None]:
        response = await self._send("POST", CALLS_PATH.format(worker_id=self._id), body)
        assignment = _read(response, Assignment)
        self._silent_beats = 0
        self._worker.heartbeat.beat()
        for call in assignment.calls:
            self._calls[call.call_id] = asyncio.get_running_loop().create_task(self._call(call))
        for call_id in assignment.cancelled:
            if (task := self._calls.get(call_id)) is not None:
                task.cancel()
        return assignment.results

    async def _call(self, call: AssignedCall) -> None:
        try:
            encoded = _encode_answer(call.call_id, await self._worker.run(call.app_id, call.data))
        except CallReturnedError as error:
            returned = Unreached(ErrorData(name="AppUnreachableError", message=error.message))
            encoded = _encode_answer(call.call_id, returned)
        except Exception as error:  # Otherwise the leader would wait for the answer.
            unsent = failed(type(error).__name__, f"the answer cannot be sent: {error!a}")
            encoded = _encode_answer(call.call_id, unsent)
        finally:
            del self._calls[call.call_id]
        self._answers.append(encoded)
        self._has_news.set()

    async def _watch(self) -> None:
        """Count heartbeats without an answer, not time: if this process pauses, answers wait to be read."""
        while self._silent_beats * self._timing.heartbeat < self._timing.lease:
            self._silent_beats += 1
            await asyncio.sleep(self._timing.heartbeat)
        self.was_silent = True

    # HTTP

    async def _send(self, method: str, path: str, body: bytes | None = None) -> HttpResponse:
        headers = {} if body is None else {"content-type": "application/json"}
        return await self._exchange_http(HttpRequest(method, path, headers, body))

    async def _exchange_http(self, request: HttpRequest) -> HttpResponse:
        if self._lost.is_set():
            raise EngineMovedError("the leader is lost", is_unclear=False)
        url = URL(f"{self._origin}{request.target}", encoded=True)
        try:
            async with self._http.request(request.method, url, data=request.body, headers=request.headers) as response:
                return HttpResponse(response.status, await response.read())
        except aiohttp.ClientConnectorError as error:
            raise EngineMovedError(str(error), is_unclear=False) from None
        except (aiohttp.ClientError, OSError) as error:
            raise EngineMovedError(f"the leader has closed the connection ({error})", is_unclear=True) from None


def _encode_answer(call_id: int, answer: Answer) -> bytes:
    return msgspec.json.encode(CallAnswer(call_id, answer))


def _fail(checkpoints: Iterable[_Checkpoint]) -> None:
    for _, stored in checkpoints:
        if not stored.done():
            stored.set_exception(EngineMovedError("the leader is lost", is_unclear=True))


def _take(items: list[T], size_of: Callable[[T], int], size: int) -> tuple[list[T], int]:
    """Take the first items out of a list, one or as many as fit into half of an exchange with ``size`` bytes."""
    number = 0
    for item in items:
        size += size_of(item)
        if number and size > MAX_EXCHANGE_BYTES // 2:
            break
        number += 1
    taken, items[:number] = items[:number], []
    return taken, size


def _read(response: HttpResponse, kind: type[T]) -> T:
    """The body of an answer about this worker. Raises ``ConfigInvalidError``, ``EngineMovedError``."""
    if response.status < 400:
        return msgspec.json.decode(response.body, type=kind)
    error = msgspec.json.decode(response.body, type=ErrorBody)
    if error.code == ConfigInvalidError.__name__:
        raise ConfigInvalidError(error.error)
    raise EngineMovedError(error.error, is_unclear=False)
