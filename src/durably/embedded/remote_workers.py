"""The leader's HTTP API for the other processes: their requests, and the worker resource, by which they run calls.

It is made when the first of them connects: most apps run in one process, and need no HTTP server.
"""

import asyncio
import hmac
import itertools
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from aiohttp import hdrs, web
from ulid import ULID

from durably.engine.api.codec import status_of
from durably.engine.api.http.application import ApiState, Route, create_api
from durably.engine.api.http.connections import CONNECTIONS, ConnectionLimits, Connections
from durably.engine.api.http.requests import SERVER_LOGGER, ApiError, ApiKeys, error_response, read_body
from durably.engine.api.local import LocalEngine
from durably.engine.api.operations import Access
from durably.engine.core.calls import Answer, AttemptFailed, CallData, Returned
from durably.engine.log.log import CommitLog
from durably.engine.model.dispatcher import Dispatcher, WorkerSlots
from durably.engine.model.events import decode_json
from durably.protocol.call import CheckpointRequest, decode
from durably.protocol.engine_errors import EngineError, WorkerLostError
from durably.protocol.events import ErrorBody
from durably.protocol.headers import ServerKind
from durably.protocol.sync import SyncRequest
from durably.protocol.text import get_logger

from .network import Network
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

_json_decoder = msgspec.json.Decoder(msgspec.Raw)
_CLOSE_SECONDS = 0.5
"""Seconds for HTTP requests to end before the leader closes."""
_LIMITS = ConnectionLimits(max_connections=10_000)
"""Of connections over TCP. A follower waits for each run with one."""
_logger = get_logger("durably.engine")


class RemoteWorker:
    """A worker in another process, as the leader sees it."""

    def __init__(self, worker_id: str, timing: Timing) -> None:
        self.id = worker_id
        self.slots: WorkerSlots
        self.is_lost = False
        self.silent_beats = 0
        """Heartbeats of the leader since the last request. A pause of the leader itself is not the worker's silence."""
        self._timing = timing
        self._call_ids = itertools.count()
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._new: dict[int, AssignedCall] = {}
        self._cancelled: list[int] = []
        self._has_news = asyncio.Event()

    async def run(self, app_id: str, data: CallData) -> Answer:
        """See ``dispatcher.Worker``."""
        if self.is_lost:  # between the choice of this worker and this call
            raise WorkerLostError(f"process {self.slots.capacity.process_id} has ended")
        call_id = next(self._call_ids)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers[call_id] = answer
        self._new[call_id] = AssignedCall(call_id, app_id, data)
        self._has_news.set()
        try:
            return await answer
        except asyncio.CancelledError:
            if self._new.pop(call_id, None) is None:
                self._cancelled.append(call_id)
                self._has_news.set()
            raise
        finally:
            del self._answers[call_id]

    def accept(self, answers: list[CallAnswer]) -> None:
        for each in answers:
            if (answer := self._answers.get(each.call_id)) is not None and not answer.done():
                answer.set_result(each.answer)

    async def wait_for_news(self) -> None:
        """Wait for a call or a cancellation, at most for the heartbeat."""
        try:
            async with asyncio.timeout(self._timing.heartbeat):
                await self._has_news.wait()
        except TimeoutError:
            return

    def take_news(self, results: list[ErrorBody | None]) -> Assignment:
        self._has_news.clear()
        assignment = Assignment(list(self._new.values()), self._cancelled, results)
        self._new, self._cancelled = {}, []
        return assignment

    def lose(self, reason: str) -> None:
        """Fail the calls of this worker, which has ended."""
        self.is_lost = True
        self._has_news.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(WorkerLostError(reason))


class Workers:
    """The workers in other processes, and the routes for them."""

    def __init__(
        self, dispatcher: Dispatcher, timing: Timing, sync: Callable[[SyncRequest], Awaitable[object]]
    ) -> None:
        self._dispatcher, self._timing, self._sync = dispatcher, timing, sync
        self._workers: dict[str, RemoteWorker] = {}
        self.routes = (
            Route("POST", WORKERS_PATH, Access.SIGNING_KEY, self._register),
            Route("PUT", WORKER_PATH, Access.SIGNING_KEY, self._change),
            Route("POST", CALLS_PATH, Access.SIGNING_KEY, self._exchange),
            Route("DELETE", WORKER_PATH, Access.SIGNING_KEY, self._leave),
        )

    def __len__(self) -> int:
        return len(self._workers)

    def beat(self) -> None:
        """Lose the workers that were silent for the lease. Called at each heartbeat."""
        for worker in list(self._workers.values()):
            if worker.silent_beats * self._timing.heartbeat >= self._timing.lease:
                process_id, lease = worker.slots.capacity.process_id, self._timing.lease
                _logger.warning(
                    "process %d has sent no heartbeat for %g s: its calls are made again", process_id, lease
                )
                self._lose(worker, f"has sent no heartbeat for {lease:g} s")
            worker.silent_beats += 1

    def close(self) -> None:
        for worker in list(self._workers.values()):
            self._lose(worker, "was left by the leader")

    def _lose(self, worker: RemoteWorker, how: str) -> None:
        if self._workers.pop(worker.id, None) is None:
            return
        self._dispatcher.remove(worker.slots)
        worker.lose(f"process {worker.slots.capacity.process_id} {how}")

    # routes

    async def _register(self, api: ApiState, request: web.Request) -> web.Response:
        registration = await _read(request, Registration)
        for sync in registration.syncs:
            await self._sync(sync)
        worker = RemoteWorker(str(ULID()), self._timing)
        worker.slots = self._dispatcher.add(worker, registration.capacity)
        self._workers[worker.id] = worker
        return _answer(Registered(worker.id), 201)

    async def _change(self, api: ApiState, request: web.Request) -> web.Response:
        worker, registration = self._find(request), await _read(request, Registration)
        if not worker.is_lost:
            self._dispatcher.change(worker.slots, registration.capacity)
        for sync in registration.syncs:
            await self._sync(sync)
        return _answer(Registered(worker.id))

    async def _exchange(self, api: ApiState, request: web.Request) -> web.Response:
        worker, exchange = self._find(request), await _read(request, Exchange)
        _check_documents(exchange.answers)
        worker.silent_beats = 0
        worker.accept(exchange.answers)
        results: list[ErrorBody | None] = []
        try:
            if exchange.checkpoints:
                results = await asyncio.gather(*(_store(api, each) for each in exchange.checkpoints))
            elif not exchange.answers:
                await worker.wait_for_news()
        except asyncio.CancelledError:  # The connection has broken.
            self._lose(worker, "has ended, or has closed its connection")
            raise
        if worker.is_lost:
            self._find(request)
        return _answer(worker.take_news(results))

    async def _leave(self, api: ApiState, request: web.Request) -> web.Response:
        self._lose(self._find(request), "has left")
        return web.Response(status=204)

    def _find(self, request: web.Request) -> RemoteWorker:
        worker = self._workers.get(request.match_info["worker_id"])
        if worker is None:
            raise ApiError(404, "the engine does not know the worker, or has given it up: register again")
        return worker


def _check_documents(answers: list[CallAnswer]) -> None:
    """Refuse outputs and errors that are not JSON. They are stored as they are, and would spoil lists of runs."""
    for each in answers:
        match each.answer:
            case Returned(output=bytes(document)) | AttemptFailed(written=bytes(document)):
                try:
                    decode(_json_decoder, document)
                except msgspec.DecodeError as error:
                    raise ApiError(400, f"the answer to call {each.call_id} has invalid JSON: {error}") from None


async def _store(api: ApiState, request: CheckpointRequest) -> ErrorBody | None:
    try:
        await api.engine.checkpoint(request.run_id, request)
    except EngineError as error:
        return ErrorBody(error=error.message, status=status_of(error), code=type(error).__name__)
    return None


async def _read(request: web.Request, kind: type[T]) -> T:
    body = await read_body(request, MAX_EXCHANGE_BYTES)
    return decode_json(body, msgspec.json.Decoder(kind).decode)


def _answer(body: msgspec.Struct, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


# the API


class LeaderApi:
    """Serves HTTP at the leader's socket, and over TCP with the key of the log. Use ``open``."""

    def __init__(self, runner: web.AppRunner, server: web.Server, connections: Connections | None) -> None:
        self._runner = runner
        self._connections = connections
        self.make_protocol: Callable[[], asyncio.Protocol] = server
        """Makes the protocol of a connection at the socket."""
        self._server = server

    @classmethod
    async def open(
        cls,
        engine: LocalEngine,
        workers: Workers,
        log: CommitLog | None,
        network: Network | None,
        listener: socket.socket | None,
    ) -> "LeaderApi":
        """Serve ``listener``, the log's address, if there is one.

        Only this user can connect to the socket, so its connections and lists need no limits.
        """
        api = create_api(engine, ApiKeys(server_kind=ServerKind.DEV), routes=workers.routes, has_limits=False)
        connections: Connections | None = None
        if log is not None:
            api[CONNECTIONS] = connections = Connections(_LIMITS)
            api.middlewares.append(_key_check(log.key))
        runner = web.AppRunner(
            api,
            access_log=None,
            logger=SERVER_LOGGER,
            shutdown_timeout=_CLOSE_SECONDS,
            handle_signals=False,
            auto_decompress=False,
            handler_cancellation=True,  # A broken connection shows that a worker has ended.
        )
        await runner.setup()
        assert runner.server is not None
        if connections is not None and listener is not None and network is not None:
            connections.start(listener, runner.server, network.server_tls)
        return cls(runner, runner.server, connections)

    def descriptors(self) -> list[int]:
        """Descriptors of its connections."""
        open_now = [each.transport for each in self._server.connections]
        return [each.get_extra_info("socket").fileno() for each in open_now if each is not None]

    async def stop_accepting(self) -> None:
        if self._connections is not None:
            await self._connections.close()

    async def close(self) -> None:
        await self._runner.cleanup()


def _key_check(key: str) -> Any:
    """aiohttp's middleware that refuses requests over TCP without the log's key."""
    expected = f"Bearer {key}".encode()

    @web.middleware
    async def check(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        connection = None if request.transport is None else request.transport.get_extra_info("socket")
        if connection is None or connection.family != socket.AF_UNIX:
            given = request.headers.get(hdrs.AUTHORIZATION, "").encode(errors="surrogateescape")
            if not hmac.compare_digest(given, expected):
                response = error_response(401, "the request does not have the key of the commit log")
                response.force_close()
                return response
        return await handler(request)

    return check
