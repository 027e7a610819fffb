"""Connect: workers of apps dial the engine, and get calls over a WebSocket.

    POST /v0/connect/start    a session for one WebSocket, and its URL
    GET  /v0/connect          the WebSocket: handshake, calls, leases, answers (``durably.protocol.connect``)
    POST /v0/connect/flush    an answer that found no WebSocket

A worker renews the lease of each call. A call whose lease expires has failed, and is made again. A broken WebSocket
alone ends no call: the worker dials again, and goes on. After a restart, the engine makes the calls again that were
under way, as it does over HTTP, and refuses the leases of the old ones.
"""

import asyncio
import contextlib
import functools
import hashlib
import hmac
import itertools
import secrets
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web
from ulid import ULID

from durably.engine.api.codec import status_of
from durably.engine.api.operations import Access
from durably.engine.core.calls import Answer, CallData, build_body, job_id_of, read_answer
from durably.engine.model.dispatcher import CallReturnedError, Capacity, Dispatcher, WorkerSlots
from durably.protocol.call import function_uuid
from durably.protocol.connect import (
    CONNECT_URL,
    FLUSH_PATH,
    MAX_FRAME_BYTES,
    SHUTDOWN_REASON,
    START_PATH,
    SUBPROTOCOL,
    AppConfiguration,
    ConnectMessage,
    FlushResponse,
    FrameInvalidError,
    GatewayConnectionReadyData,
    GatewayExecutorRequestData,
    Kind,
    Message,
    ReplyStatus,
    SDKResponse,
    StartRequest,
    StartResponse,
    SystemError,
    WorkerConnectRequestData,
    WorkerReplyAckData,
    WorkerRequestAckData,
    WorkerRequestExtendLeaseAckData,
    WorkerRequestExtendLeaseData,
    decode,
    encode,
    frame,
)
from durably.protocol.engine_errors import EngineError, WorkerLostError
from durably.protocol.headers import Header, trace_headers
from durably.protocol.sync import SyncRequest, decode_sync
from durably.protocol.text import get_logger

from .application import ApiState, Route
from .requests import ApiError, read_body
from .syncs import AcceptedSync

M = TypeVar("M", bound=Message)

SOCKET_PATH = "/v0/connect"
HEARTBEAT_SECONDS = 5
MISSED_HEARTBEATS = 5
"""A worker that sends nothing for so many heartbeats is disconnected."""
EXTEND_SECONDS = 5
"""Seconds between two renewals of a lease."""
LEASE_SECONDS = 45.0
"""Seconds after which a call without a renewal is lost. A worker notices after ten that nothing arrives any more, and
has time to dial more than once."""
RETURN_SECONDS = 20.0
"""The same after the engine has noticed that the WebSocket is broken, and for the acknowledgement of a call."""
_HANDSHAKE_SECONDS = 5.0
_CLOSE_SECONDS = 1.0
"""Seconds in which a worker answers the end of a WebSocket."""
_SESSION_SECONDS = 300.0
_MAX_SESSIONS = 1_000
"""Of sessions that no worker has used yet."""
_MAX_INSTANCES = 10_000
"""Of instances that are recognised when they dial again."""
_MAX_START_BYTES = 1024 * 1024
_MAX_APPS = 100
_UNLIMITED = 1_000_000
_STATUS: dict[int, int] = {ReplyStatus.NOT_COMPLETED: 206, ReplyStatus.DONE: 200, ReplyStatus.ERROR: 500}

_logger = get_logger("durably.engine")


class _CloseError(Exception):
    """Closes a WebSocket with a code and a reason of the protocol."""

    def __init__(self, reason: str, code: int = WSCloseCode.POLICY_VIOLATION, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.code, self.detail = reason, code, detail


class _Call:
    """A call that a worker has."""

    def __init__(self, connection: "_Connection", app_id: str, lease_id: str) -> None:
        self.connection: _Connection | None = connection
        self.app_id, self.lease_id = app_id, lease_id
        self.is_acknowledged = False
        self.lease: asyncio.Timeout | None = None
        """While the engine waits for the answer."""
        self.reply: asyncio.Future[SDKResponse] = asyncio.get_running_loop().create_future()

    def renew(self, seconds: float = LEASE_SECONDS) -> None:
        if self.lease is not None and not self.lease.expired() and not self.reply.done():
            self.lease.reschedule(asyncio.get_running_loop().time() + seconds)


class _Connection:
    """A WebSocket after its handshake."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        transport: asyncio.Transport | None,
        hello: WorkerConnectRequestData,
        syncs: list[SyncRequest],
    ) -> None:
        self.socket, self._transport, self.hello = socket, transport, hello
        self.app_of = {function.id: sync.app_id for sync in syncs for function in sync.functions}
        self.takes_calls = not hello.worker_manual_readiness_ack
        self.under_way = 0
        self._unsent: asyncio.Queue[bytes] = asyncio.Queue()

    def send(self, kind: Kind, message: Message | bytes = b"") -> None:
        self._unsent.put_nowait(frame(kind, message))

    async def write(self) -> None:
        """Send what ``send`` got, until the WebSocket is closed. A worker that reads nothing is disconnected."""
        try:
            while True:
                content = await self._unsent.get()
                async with asyncio.timeout(RETURN_SECONDS):
                    await self.socket.send_bytes(content)
        except TimeoutError:
            _logger.warning("the worker %s reads nothing, and is disconnected", ascii(self.hello.instance_id))
            if self._transport is not None:
                self._transport.abort()
        except ConnectionError:
            pass


class _Instance:
    """The connections of one instance of an app, which share its capacity. It is a ``dispatcher.Worker``.

    It outlives them until its calls have ended, which count when the instance dials again.
    """

    def __init__(self, calls: dict[str, _Call], on_end: Callable[[], None]) -> None:
        self.connections: list[_Connection] = []
        self.slots: WorkerSlots | None = None
        self.under_way = 0
        self._calls, self._on_end = calls, on_end

    async def run(self, app_id: str, data: CallData) -> Answer:
        connection = self._best(app_id, data.function_id)
        call = self._send(connection, app_id, data)
        connection.under_way += 1
        self.under_way += 1
        try:
            async with asyncio.timeout(RETURN_SECONDS) as call.lease:
                reply = await call.reply
        except TimeoutError:
            if call.is_acknowledged:
                raise WorkerLostError(
                    f"the worker of the app {app_id!r} has ended, or has not renewed the lease"
                ) from None
            raise CallReturnedError(f"no worker of the app {app_id!r} has acknowledged the call") from None
        finally:
            self._calls.pop(data.request_id, None)
            connection.under_way -= 1
            self.under_way -= 1
            if not self.connections:
                self._on_end()
        # The task that makes the call stores its answer, so the worker may forget the answer when the task has ended.
        if call.connection is not None and (task := asyncio.current_task()) is not None:
            acknowledgement = WorkerReplyAckData(request_id=data.request_id)
            send = functools.partial(call.connection.send, Kind.WORKER_REPLY_ACK, acknowledgement)
            task.add_done_callback(lambda _: send())
        return _read_reply(reply)

    def _best(self, app_id: str, function_id: str) -> _Connection:
        """The connection with the fewest calls. Raises ``CallReturnedError``."""
        serving = (each for each in self.connections if each.takes_calls and function_id in each.app_of)
        connection = min(serving, key=lambda each: each.under_way, default=None)
        if connection is None:
            raise CallReturnedError(f"no worker of the app {app_id!r} is connected")
        return connection

    def _send(self, connection: _Connection, app_id: str, data: CallData) -> _Call:
        call = self._calls[data.request_id] = _Call(connection, app_id, str(ULID()))
        connection.send(
            Kind.GATEWAY_EXECUTOR_REQUEST,
            GatewayExecutorRequestData(
                request_id=data.request_id,
                app_id=app_id,
                app_name=app_id,
                function_id=function_uuid(data.function_id),
                function_slug=data.function_id,
                step_id=data.call.step_id,
                request_payload=build_body(data),
                system_trace_ctx=b"{}",
                user_trace_ctx=msgspec.json.encode(trace_headers(data.traceparent)),
                run_id=data.run_id,
                lease_id=call.lease_id,
                job_id=job_id_of(data.run_id, data.call.step_id),
            ),
        )
        return call


def _read_reply(reply: SDKResponse) -> Answer:
    headers = {
        Header.SDK.value: reply.sdk_version or "connect",
        Header.NO_RETRY.value: "true" if reply.no_retry else "false",
    }
    if reply.retry_after:
        headers[Header.RETRY_AFTER.value] = reply.retry_after
    if reply.request_version:
        headers[Header.REQUEST_VERSION.value] = str(reply.request_version)
    # The JavaScript SDK reports an error that must not be retried as done.
    status = 500 if reply.no_retry and reply.status == ReplyStatus.DONE else _STATUS.get(reply.status, 500)
    return read_answer(status, headers, reply.body, time.time_ns() // 1_000_000)


class Connect:
    """The handlers of the routes, and the workers that are connected."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._sessions: dict[str, tuple[str, float]] = {}
        """Tokens by connection ids, and when they expire."""
        self._instances: dict[str, _Instance] = {}
        self._calls: dict[str, _Call] = {}
        self._connections: set[_Connection] = set()
        self._announced: dict[str, tuple[bytes, int]] = {}
        """By instances: a hash of their apps, and a number that is higher for those that announced theirs later."""
        self._numbers = itertools.count(1)
        self._synced: dict[str, int] = {}
        """By apps: the number of the instance that has synced their functions."""
        self.routes = (
            Route("POST", START_PATH, Access.SIGNING_KEY, self._start),
            Route("POST", FLUSH_PATH, Access.SIGNING_KEY, self._flush),
            Route("GET", SOCKET_PATH, Access.OPEN, self._serve),
        )

    # HTTP

    async def _start(self, api: ApiState, request: web.Request) -> web.Response:
        """``POST /v0/connect/start``: a session, which a worker uses within five minutes."""
        _decode_body(StartRequest, await read_body(request, _MAX_START_BYTES))
        now = time.monotonic()
        while self._sessions and next(iter(self._sessions.values()))[1] < now:
            del self._sessions[next(iter(self._sessions))]
        if len(self._sessions) >= _MAX_SESSIONS:
            raise ApiError(
                429, f"{_MAX_SESSIONS} workers have begun to connect, and have not finished: try again later"
            )
        connection_id, token = str(ULID()), secrets.token_urlsafe()
        self._sessions[connection_id] = token, now + _SESSION_SECONDS
        is_secure = request.secure or request.headers.get("x-forwarded-proto", "").lower() == "https"
        return _answer(
            StartResponse(
                connection_id=connection_id,
                gateway_endpoint=f"{'wss' if is_secure else 'ws'}://{request.host}{SOCKET_PATH}",
                gateway_group="durably",
                session_token=token,
                sync_token=request.headers.get(Header.AUTHORIZATION, "").partition(" ")[2],
            )
        )

    async def _flush(self, api: ApiState, request: web.Request) -> web.Response:
        """``POST /v0/connect/flush``: the answer to a call."""
        reply = _decode_body(SDKResponse, await read_body(request))
        self._accept(reply, None)
        return _answer(FlushResponse(request_id=reply.request_id))

    # the WebSocket

    async def _serve(self, api: ApiState, request: web.Request) -> web.StreamResponse:
        """``GET /v0/connect``: a worker's WebSocket, until one side closes it."""
        socket = web.WebSocketResponse(
            timeout=_CLOSE_SECONDS, protocols=(SUBPROTOCOL,), max_msg_size=MAX_FRAME_BYTES, compress=False
        )
        await socket.prepare(request)
        connection: _Connection | None = None
        writing: asyncio.Task[None] | None = None
        try:
            connection = await self._shake_hands(socket, request.transport, api)
            writing = asyncio.get_running_loop().create_task(connection.write())
            self._add(connection)
            await self._receive(connection)
        except _CloseError as error:
            _logger.warning("the connection of a worker is closed (%s)", f"{error.reason}: {error.detail}".rstrip(": "))
            if error.detail and error.code == WSCloseCode.POLICY_VIOLATION:  # The worker gives up.
                refusal = SystemError(code=error.reason, message=error.detail)
                await socket.send_bytes(frame(Kind.SYNC_FAILED, refusal))
            await socket.close(code=error.code, message=error.reason.encode())
        except FrameInvalidError:
            await socket.close(code=WSCloseCode.INVALID_TEXT, message=b"connect_worker_hello_invalid_payload")
        except ConnectionError:  # The worker has disconnected.
            pass
        finally:
            if connection is not None:
                self._remove(connection)
            if writing is not None:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
        return socket

    async def _shake_hands(
        self, socket: web.WebSocketResponse, transport: asyncio.Transport | None, api: ApiState
    ) -> _Connection:
        """Raises ``_CloseError``, ``FrameInvalidError``."""
        await socket.send_bytes(frame(Kind.GATEWAY_HELLO))
        try:
            received = await socket.receive(timeout=_HANDSHAKE_SECONDS)
        except TimeoutError:
            raise _CloseError("connect_worker_hello_timeout") from None
        kind, payload = _read_frame(received)
        if kind is not Kind.WORKER_CONNECT:
            raise _CloseError("connect_worker_hello_invalid_msg")
        try:
            hello = decode(WorkerConnectRequestData, payload)
            ULID.from_str(hello.connection_id)
        except ValueError:
            raise _CloseError("connect_worker_hello_invalid_payload") from None
        token, expires = self._sessions.pop(hello.connection_id, ("", 0.0))
        given = hello.auth_data.session_token.encode()
        if not token or expires < time.monotonic() or not hmac.compare_digest(given, token.encode()):
            raise _CloseError("connect_authentication_failed")
        if not hello.instance_id or not hello.apps:
            raise _CloseError("connect_worker_hello_invalid_payload")
        if len(hello.apps) > _MAX_APPS:
            raise _CloseError("connect_too_many_apps_per_connection")
        try:
            syncs = [_sync_of(hello, app) for app in hello.apps]
            announced = hashlib.sha256(encode(WorkerConnectRequestData(apps=hello.apps))).digest()
            known, number = self._announced.pop(hello.instance_id, (b"", 0))
            if known != announced:
                number = next(self._numbers)
            self._announced[hello.instance_id] = announced, number
            if len(self._announced) > _MAX_INSTANCES:
                del self._announced[next(iter(self._announced))]
            for each in syncs:
                # A worker that only dials again does not replace functions of newer code.
                if number >= self._synced.get(each.app_id, 0):
                    self._synced[each.app_id] = number
                    api.on_sync(AcceptedSync(each, await api.engine.sync_app(each)))
        except Exception as raised:
            error = api.engine.explain(raised)
            if isinstance(error, EngineError) and status_of(error) in (500, 503):  # The worker dials again.
                raise _CloseError("connect_internal_error", WSCloseCode.INTERNAL_ERROR, error.message) from None
            if not isinstance(error, EngineError | msgspec.MsgspecError):
                raise
            raise _CloseError("connect_invalid_function_config", detail=str(error)) from None
        ready = GatewayConnectionReadyData(
            heartbeat_interval=f"{HEARTBEAT_SECONDS}s", extend_lease_interval=f"{EXTEND_SECONDS}s", status_interval="0s"
        )
        await socket.send_bytes(frame(Kind.GATEWAY_CONNECTION_READY, ready))
        return _Connection(socket, transport, hello, syncs)

    async def _receive(self, connection: _Connection) -> None:
        while True:
            try:
                received = await connection.socket.receive(timeout=HEARTBEAT_SECONDS * MISSED_HEARTBEATS)
            except TimeoutError:
                _logger.warning(
                    "the worker %s has sent no heartbeat for %d s, and is disconnected",
                    ascii(connection.hello.instance_id),
                    HEARTBEAT_SECONDS * MISSED_HEARTBEATS,
                )
                raise _CloseError("CONSECUTIVE_HEARTBEATS_MISSED", WSCloseCode.GOING_AWAY) from None
            if received.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                if received.extra == SHUTDOWN_REASON:
                    self._fail_calls_of(connection, WorkerLostError("the worker has stopped during the call"))
                return
            kind, payload = _read_frame(received)
            if kind is Kind.WORKER_HEARTBEAT:
                connection.send(Kind.GATEWAY_HEARTBEAT)
            elif kind is Kind.WORKER_REQUEST_ACK:
                call = self._calls.get(decode(WorkerRequestAckData, payload).request_id)
                if call is not None:
                    call.is_acknowledged = True
                    call.renew()
            elif kind is Kind.WORKER_REPLY:
                self._accept(decode(SDKResponse, payload), connection)
            elif kind is Kind.WORKER_REQUEST_EXTEND_LEASE:
                self._renew(decode(WorkerRequestExtendLeaseData, payload), connection)
            elif kind in (Kind.WORKER_READY, Kind.WORKER_PAUSE):
                connection.takes_calls = kind is Kind.WORKER_READY
                self._update(connection.hello.instance_id)

    # connections

    def _add(self, connection: _Connection) -> None:
        self._connections.add(connection)
        instance_id = connection.hello.instance_id
        if instance_id not in self._instances:
            self._instances[instance_id] = _Instance(self._calls, functools.partial(self._update, instance_id))
        self._instances[instance_id].connections.append(connection)
        self._update(instance_id)
        apps = ", ".join(sorted({*connection.app_of.values()}))
        _logger.info("the worker %s of %s has connected", ascii(instance_id), ascii(apps))

    def _remove(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        instance_id = connection.hello.instance_id
        self._instances[instance_id].connections.remove(connection)
        self._update(instance_id)
        unreceived = CallReturnedError("the connection to the worker broke before it acknowledged the call")
        self._fail_calls_of(connection, unreceived, only_unacknowledged=True)
        for call in self._calls.values():
            if call.connection is connection:
                call.renew(RETURN_SECONDS)
        _logger.info("the worker %s has disconnected", ascii(instance_id))

    def _update(self, instance_id: str) -> None:
        """Give the dispatcher the functions and the capacity of an instance."""
        instance = self._instances[instance_id]
        taking = [each for each in instance.connections if each.takes_calls]
        functions = frozenset(itertools.chain.from_iterable(each.app_of for each in taking))
        limit = instance.connections[-1].hello.max_worker_concurrency or _UNLIMITED if instance.connections else 0
        capacity = Capacity(0, functions, limit)
        if instance.slots is None:
            instance.slots = self._dispatcher.add(instance, capacity)
        else:
            self._dispatcher.change(instance.slots, capacity)
        if not instance.connections and not instance.under_way:
            self._dispatcher.remove(instance.slots)
            del self._instances[instance_id]

    # calls

    def _accept(self, reply: SDKResponse, connection: _Connection | None) -> None:
        call = self._calls.get(reply.request_id)
        if call is not None and (connection is None or call.app_id in connection.app_of.values()):
            call.connection = connection
            if not call.reply.done():
                call.reply.set_result(reply)
        elif connection is not None:  # The engine has given the call up.
            connection.send(Kind.WORKER_REPLY_ACK, WorkerReplyAckData(request_id=reply.request_id))

    def _renew(self, lease: WorkerRequestExtendLeaseData, connection: _Connection) -> None:
        call = self._calls.get(lease.request_id)
        new_lease_id = ""
        if call is not None and call.lease_id == lease.lease_id:
            call.lease_id = new_lease_id = str(ULID())
            call.connection, call.is_acknowledged = connection, True
            call.renew()
        connection.send(
            Kind.WORKER_REQUEST_EXTEND_LEASE_ACK,
            WorkerRequestExtendLeaseAckData(
                request_id=lease.request_id,
                app_id=lease.app_id,
                function_slug=lease.function_slug,
                new_lease_id=new_lease_id,
            ),
        )

    def _fail_calls_of(self, connection: _Connection, error: Exception, *, only_unacknowledged: bool = False) -> None:
        for call in self._calls.values():
            is_lost = call.connection is connection and not (only_unacknowledged and call.is_acknowledged)
            if is_lost and call.lease is not None and not call.reply.done():
                call.reply.set_exception(error)

    async def close(self, app: web.Application) -> None:
        """Tell the workers to dial again, and close their connections. Their calls have had their time to end."""
        for connection in list(self._connections):
            with contextlib.suppress(ConnectionError):
                await connection.socket.send_bytes(frame(Kind.GATEWAY_CLOSING))
                await connection.socket.close(code=WSCloseCode.GOING_AWAY, message=b"connect_gateway_closing")


def _read_frame(received: WSMessage) -> tuple[Kind, bytes]:
    """The kind and payload of a frame. Raises ``FrameInvalidError``, ``ConnectionError`` at the end."""
    if received.type is WSMsgType.BINARY:
        message = decode(ConnectMessage, received.data)
        try:
            return Kind(message.kind), message.payload
        except ValueError:
            raise FrameInvalidError(f"the kind {message.kind} is unknown") from None
    if received.type is WSMsgType.TEXT:
        raise FrameInvalidError("frames are binary")
    raise ConnectionResetError


def _sync_of(hello: WorkerConnectRequestData, app: AppConfiguration) -> SyncRequest:
    """The sync of an app that a worker announces. Raises ``msgspec.MsgspecError``."""
    sync = decode_sync(b'{"url":"%b","functions":%b}' % (CONNECT_URL.encode(), app.functions or b"null"))
    return msgspec.structs.replace(
        sync,
        app_name=app.app_name,
        app_version=app.app_version or None,
        deploy_type="connect",
        framework=hello.framework or None,
        sdk=f"{hello.sdk_language}:v{hello.sdk_version.removeprefix('v')}",
        capabilities=None,
    )


def _decode_body(kind: type[M], body: bytes) -> M:
    try:
        return decode(kind, body)
    except FrameInvalidError as error:
        raise ApiError(400, f"the body is not a {kind.__name__} in the encoding of Protocol Buffers: {error}") from None


def _answer(message: Message) -> web.Response:
    return web.Response(body=encode(message), content_type="application/octet-stream")
