"""``durably.connect``: an app dials the engine and gets its calls over a WebSocket. It needs no URL of its own.

The WebSocket belongs to the background loop, so that a function which blocks its event loop keeps its lease. Answers
are kept until the engine acknowledges them, and are flushed over HTTP if the WebSocket has lost them.
"""

import asyncio
import concurrent.futures
import contextlib
import math
import os
import platform
import secrets
import signal
import socket as sockets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

try:
    import aiohttp
except ImportError as error:
    raise ImportError('durably.connect needs aiohttp: pip install "durably[connect]"') from error

from .client import Client
from .comm.handler import CommHandler
from .comm.requests import CommRequest, CommResponse
from .errors import FunctionConfigInvalidError, RegistrationFailedError, TransportError
from .functions.function import Function
from .io.background_loop import get_background_loop
from .io.http_client import AsyncIO, Request, Response, request_with_keys
from .protocol.connect import (
    CONNECT_URL,
    FLUSH_PATH,
    MAX_FRAME_BYTES,
    SHUTDOWN_REASON,
    START_PATH,
    SUBPROTOCOL,
    AppConfiguration,
    AuthData,
    ConnectMessage,
    FrameInvalidError,
    GatewayConnectionReadyData,
    GatewayExecutorRequestData,
    Kind,
    Message,
    ReplyStatus,
    SDKResponse,
    StartRequest,
    StartResponse,
    SystemAttributes,
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
from .protocol.headers import VERSION, Header, Query
from .protocol.limits import MAX_RUN_STATE_BYTES
from .protocol.text import printable

_AGAIN_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300)
"""Seconds before the worker dials again, by the number of failures."""
_CONNECT_SECONDS = 5.0
_HANDSHAKE_SECONDS = 10.0
_CLOSE_SECONDS = 1.0
"""Seconds in which the engine answers the end of a WebSocket."""
_ACKNOWLEDGED_SECONDS = 5.0
"""Seconds after which an answer without an acknowledgement is flushed."""
_FLUSH_TRIES = 5
_FRAME_HEAD_BYTES = 32
_STATUS = {200: ReplyStatus.DONE, 206: ReplyStatus.NOT_COMPLETED}


def connect(
    apps: Sequence[tuple[Client, Sequence[Function[Any]]]],
    *,
    instance_id: str | None = None,
    max_worker_concurrency: int | None = None,
) -> "WorkerConnection":
    """Serve functions over a connection to the engine, instead of an endpoint.

    - ``apps``: Clients with their functions. All have one engine and signing key.
    - ``instance_id``: Names this process in the engine's log; processes with one id share a limit. By default it is
      made of the host's name, the process's id and random characters.
    - ``max_worker_concurrency``: The most calls at a time. By default there is no limit. A sync function whose call the
      engine has given up cannot be ended, and does not count.

    Raises ``FunctionConfigInvalidError`` for clients that cannot be connected, and the errors of ``serve``.
    """
    return WorkerConnection(apps, instance_id, max_worker_concurrency)


@dataclass
class _Call:
    request: GatewayExecutorRequestData
    lease_id: str
    outcome: concurrent.futures.Future[bytes]


class WorkerConnection:
    """A connection that ``durably.connect`` makes. ``await start()`` serves functions until ``await close()``."""

    def __init__(
        self,
        apps: Sequence[tuple[Client, Sequence[Function[Any]]]],
        instance_id: str | None,
        max_worker_concurrency: int | None,
    ) -> None:
        if not apps:
            raise FunctionConfigInvalidError("connect takes a list of (client, functions), and got an empty one")
        if max_worker_concurrency is not None and max_worker_concurrency < 1:
            raise FunctionConfigInvalidError("connect(max_worker_concurrency=…) must be at least 1")
        self._client = client = apps[0][0]
        for other, _ in apps:
            if other.in_process is not None:
                raise FunctionConfigInvalidError(
                    f"the engine of the app {other.app_id!r} runs in the app's processes, which need no connection: "
                    "give its functions to serve(…)"
                )
            if (other.origins.api, other.mode, other.signing_keys) != (
                client.origins.api,
                client.mode,
                client.signing_keys,
            ):
                raise FunctionConfigInvalidError(
                    f"the apps {client.app_id!r} and {other.app_id!r} have different engines or signing keys: connect "
                    "them separately"
                )
        self._handlers = {
            each.app_id: CommHandler(client=each, framework="connect", functions=functions) for each, functions in apps
        }
        self._instance_id = instance_id or f"{sockets.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._max_calls = max_worker_concurrency or 0
        self._slots = asyncio.Semaphore(max_worker_concurrency or sys.maxsize)
        """The engine may not know of calls that it has given up, or had before it was restarted."""
        self._logger = client.logger
        self._calls: dict[str, _Call] = {}
        self._kept: dict[str, tuple[bytes, float]] = {}
        """Answers without an acknowledgement, and when they were sent."""
        self._unsent: asyncio.Queue[bytes] | None = None
        """Frames for the WebSocket, if there is one."""
        self._closing = asyncio.Event()
        self._changed = asyncio.Event()
        """Set when a call has ended or its answer is acknowledged."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: concurrent.futures.Future[None] | None = None

    async def start(self) -> None:
        """Serve the functions until ``close``, or SIGTERM if the program does not handle it.

        Async functions run on this event loop.
        Dials again if the connection breaks. Raises ``RegistrationFailedError`` if the engine refuses the functions or
        the signing key.
        """
        self._loop = loop = asyncio.get_running_loop()
        self._ended = get_background_loop().submit(self._serve())
        is_main = threading.current_thread() is threading.main_thread()
        with contextlib.ExitStack() as stack:
            if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                with contextlib.suppress(NotImplementedError):  # Windows
                    loop.add_signal_handler(signal.SIGTERM, self._stop)
                    stack.callback(loop.remove_signal_handler, signal.SIGTERM)
            await asyncio.shield(asyncio.wrap_future(self._ended))

    def _stop(self) -> None:
        get_background_loop().loop.call_soon_threadsafe(self._closing.set)

    async def close(self) -> None:
        """Take no more calls, wait for those under way, and disconnect when the engine has their answers."""
        if self._ended is not None:
            self._stop()
            with contextlib.suppress(RegistrationFailedError):  # ``start`` raises it.
                await asyncio.shield(asyncio.wrap_future(self._ended))

    # the rest runs on the background loop

    async def _serve(self) -> None:
        failures = 0
        async with aiohttp.ClientSession() as http:
            while not self._is_drained:
                dialling = asyncio.create_task(self._dial(http))
                drained = asyncio.create_task(self._wait_until_drained())
                try:
                    await asyncio.wait((dialling, drained), return_when=asyncio.FIRST_COMPLETED)
                    if not dialling.done():
                        break
                    socket, ready = dialling.result()
                    failures = 0
                    await self._use(socket, ready)
                    if self._is_drained:
                        break
                    problem = "the engine has closed the connection"
                except (TransportError, aiohttp.ClientError, TimeoutError, OSError, FrameInvalidError) as error:
                    problem = str(error) or "the engine does not answer"
                finally:
                    for each in (dialling, drained):
                        each.cancel()
                    await asyncio.gather(dialling, drained, return_exceptions=True)
                delay = _AGAIN_SECONDS[min(failures, len(_AGAIN_SECONDS) - 1)]
                failures += 1
                self._logger.warning("%s: dialling again in %d s", printable(problem), delay)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._wait_until_drained()
        for attempt in range(_FLUSH_TRIES):
            if await self._flush(0):
                return
            await asyncio.sleep(_AGAIN_SECONDS[attempt])
        self._logger.error("the engine did not get %d answers, so it makes these calls again", len(self._kept))

    @property
    def _is_drained(self) -> bool:
        return self._closing.is_set() and not self._calls

    async def _dial(
        self, http: aiohttp.ClientSession
    ) -> tuple[aiohttp.ClientWebSocketResponse, GatewayConnectionReadyData]:
        """A WebSocket after the handshake. Raises ``RegistrationFailedError``."""
        answer = await self._post(START_PATH, encode(StartRequest()))
        if answer.status in (401, 403, 501):
            reason = printable(answer.body.decode(errors="replace"))
            raise RegistrationFailedError(f"the engine refuses the connection ({answer.status}): {reason}")
        if answer.status != 200:
            raise TransportError(f"the engine answered a start with {answer.status}")
        await self._flush(0)
        started = decode(StartResponse, answer.body)
        endpoint = started.gateway_endpoint
        if self._client.api_origin.startswith("https:"):  # An engine behind a proxy may not know that this is so.
            endpoint = endpoint.replace("ws://", "wss://", 1)
        async with asyncio.timeout(_HANDSHAKE_SECONDS):
            socket = await http.ws_connect(
                endpoint,
                protocols=(SUBPROTOCOL,),
                max_msg_size=MAX_FRAME_BYTES,
                compress=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS),  # pyright: ignore[reportCallIssue]
            )
            try:
                await _receive(socket, Kind.GATEWAY_HELLO)
                await socket.send_bytes(frame(Kind.WORKER_CONNECT, self._introduction(started)))
                payload = await _receive(socket, Kind.GATEWAY_CONNECTION_READY)
            except BaseException:
                await socket.close()
                raise
        return socket, decode(GatewayConnectionReadyData, payload)

    def _introduction(self, started: StartResponse) -> WorkerConnectRequestData:
        apps = []
        for app_id, handler in self._handlers.items():
            configs = [config for function in handler.functions for config in function.configs(CONNECT_URL)]
            apps.append(
                AppConfiguration(app_id, handler.client.app_version or "", functions=msgspec.json.encode(configs))
            )
        return WorkerConnectRequestData(
            connection_id=started.connection_id,
            instance_id=self._instance_id,
            auth_data=AuthData(started.session_token, started.sync_token),
            capabilities=b"{}",
            apps=apps,
            system_attributes=SystemAttributes(cpu_cores=os.cpu_count() or 0, os=platform.system().lower()),
            environment=self._client.env or "",
            framework="connect",
            sdk_version=f"v{VERSION}",
            sdk_language="durably",
            max_worker_concurrency=self._max_calls,
        )

    async def _use(self, socket: aiohttp.ClientWebSocketResponse, ready: GatewayConnectionReadyData) -> None:
        """Serve calls until the WebSocket is closed."""
        unsent: asyncio.Queue[bytes] = asyncio.Queue()
        self._unsent = unsent
        heartbeat = _seconds(ready.heartbeat_interval, 10.0)
        pause = min(heartbeat, _seconds(ready.extend_lease_interval, 5.0))
        self._logger.info("connected to the engine, as %s", self._instance_id)
        parts = self._write(socket, unsent), self._beat(pause), self._drain(socket)
        helpers = [asyncio.create_task(part) for part in parts]
        try:
            while True:
                received = await socket.receive(timeout=2 * heartbeat)
                if received.type is not aiohttp.WSMsgType.BINARY:
                    return
                message = decode(ConnectMessage, received.data)
                if message.kind == Kind.GATEWAY_EXECUTOR_REQUEST:
                    self._begin(decode(GatewayExecutorRequestData, message.payload))
                elif message.kind == Kind.WORKER_REQUEST_EXTEND_LEASE_ACK:
                    self._renewed(decode(WorkerRequestExtendLeaseAckData, message.payload))
                elif message.kind == Kind.WORKER_REPLY_ACK:
                    self._kept.pop(decode(WorkerReplyAckData, message.payload).request_id, None)
                    self._changed.set()
                elif message.kind == Kind.GATEWAY_CLOSING:
                    return
        finally:
            self._unsent = None
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            await socket.close()

    async def _write(self, socket: aiohttp.ClientWebSocketResponse, unsent: asyncio.Queue[bytes]) -> None:
        while True:
            await socket.send_bytes(await unsent.get())

    async def _beat(self, pause: float) -> None:
        """Send heartbeats, renew leases, and flush answers that were not acknowledged."""
        while True:
            self._send(Kind.WORKER_HEARTBEAT)
            for call in self._calls.values():
                renewal = _of_call(WorkerRequestExtendLeaseData, call.request, lease_id=call.lease_id)
                self._send(Kind.WORKER_REQUEST_EXTEND_LEASE, renewal)
            await self._flush(_ACKNOWLEDGED_SECONDS)
            await asyncio.sleep(pause)

    async def _drain(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """On ``close``: end the calls, wait for the acknowledgements of their answers, and disconnect."""
        await self._closing.wait()
        self._send(Kind.WORKER_PAUSE)
        await self._until(lambda: not self._calls)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ACKNOWLEDGED_SECONDS):
                await self._until(lambda: not self._kept)
        await socket.close(code=1000, message=SHUTDOWN_REASON.encode())

    async def _wait_until_drained(self) -> None:
        await self._closing.wait()
        await self._until(lambda: not self._calls)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._changed.clear()
            await self._changed.wait()

    # calls

    def _begin(self, request: GatewayExecutorRequestData) -> None:
        """Start a call. While the worker stops, the engine gives it to another one."""
        if (handler := self._handlers.get(request.app_name)) is None or self._closing.is_set():
            return
        assert self._loop is not None
        own_loop = asyncio.get_running_loop()
        self._send(Kind.WORKER_REQUEST_ACK, _of_call(WorkerRequestAckData, request))
        outcome = asyncio.run_coroutine_threadsafe(self._run(handler, request), self._loop)
        self._calls[request.request_id] = _Call(request, request.lease_id, outcome)
        outcome.add_done_callback(lambda _: own_loop.call_soon_threadsafe(self._finish, request.request_id))

    async def _run(self, handler: CommHandler, request: GatewayExecutorRequestData) -> bytes:
        """Run a call when there is a slot, on the event loop of the app."""
        async with self._slots:
            return await _answer(handler, request)

    def _finish(self, request_id: str) -> None:
        call = self._calls.pop(request_id)
        self._changed.set()
        if not call.outcome.cancelled():
            reply = call.outcome.result()
            if len(reply) > MAX_FRAME_BYTES - _FRAME_HEAD_BYTES:
                self._kept[request_id] = reply, -math.inf  # It is flushed with the next heartbeat.
                return
            self._kept[request_id] = reply, time.monotonic()
            self._send(Kind.WORKER_REPLY, reply)

    def _renewed(self, answer: WorkerRequestExtendLeaseAckData) -> None:
        if (call := self._calls.get(answer.request_id)) is None:
            return
        if answer.new_lease_id:
            call.lease_id = answer.new_lease_id
        else:
            self._logger.warning("run %s: the engine has given this call up, so it stops", call.request.run_id)
            call.outcome.cancel()

    def _send(self, kind: Kind, message: Message | bytes = b"") -> None:
        if self._unsent is not None:
            self._unsent.put_nowait(frame(kind, message))

    # HTTP

    async def _flush(self, age: float) -> bool:
        """Flush answers that were sent ``age`` seconds ago. Returns whether none is left of them."""
        for request_id, (reply, sent) in list(self._kept.items()):
            if time.monotonic() - sent < age:
                continue
            try:
                answer = await self._post(FLUSH_PATH, reply)
            except TransportError:
                return False
            if answer.status >= 500 or answer.status == 429:
                return False
            if answer.status != 200:
                self._logger.error("the engine refuses the answer to a call (%d)", answer.status)
            self._kept.pop(request_id, None)
        return True

    async def _post(self, path: str, body: bytes) -> Response:
        client = self._client
        headers = client.headers("connect") | {Header.CONTENT_TYPE.value: "application/protobuf"}
        request = Request("POST", client.api_origin + path, headers, body, client.request_timeout)
        return await request_with_keys(_FreshIO(), request, client.signing_keys)


class _FreshIO(AsyncIO):
    """Opens a connection for each request: a network that has lost the WebSocket has lost those kept open, too."""

    async def request(self, request: Request) -> Response:
        timeout = aiohttp.ClientTimeout(request.timeout, sock_connect=_CONNECT_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as http,
                http.request(
                    request.method, request.url, headers=request.headers, data=request.body, allow_redirects=False
                ) as answer,
            ):
                return Response(answer.status, await answer.read())
        except (aiohttp.ClientError, OSError) as error:  # also ``TimeoutError``
            raise TransportError(f"cannot reach the engine: {error or 'it did not answer in time'}") from None


async def _answer(handler: CommHandler, request: GatewayExecutorRequestData) -> bytes:
    """Run a call. Returns the encoded answer."""
    headers = {Header.CONTENT_TYPE.value: "application/json", Header.REQUEST_ID.value: request.request_id}
    if request.job_id:
        headers[Header.JOB_ID.value] = request.job_id
    with contextlib.suppress(msgspec.DecodeError):
        headers |= msgspec.json.decode(request.user_trace_ctx or b"{}", type=dict[str, str])
    response = await handler.post(
        CommRequest(
            body=request.request_payload,
            headers=headers,
            query_params={Query.FUNCTION_ID.value: request.function_slug, Query.STEP_ID.value: request.step_id},
            raw_request=request,
            request_url=CONNECT_URL,
            is_connect=True,
        )
    )
    if len(response.body) > MAX_RUN_STATE_BYTES:
        message = f"the app's answer has more than {MAX_RUN_STATE_BYTES} bytes"
        error = {"name": "AnswerTooLargeError", "message": message}
        headers = response.headers | {Header.NO_RETRY.value: "true"}
        response = CommResponse.from_json(error, headers=headers, status_code=500)
    return encode(
        SDKResponse(
            request_id=request.request_id,
            account_id=request.account_id,
            env_id=request.env_id,
            app_id=request.app_id,
            status=_STATUS.get(response.status_code, ReplyStatus.ERROR),
            body=response.body,
            no_retry=response.no_retry,
            retry_after=response.retry_after or "",
            sdk_version=response.sdk_version or "",
            request_version=response.request_version or 0,
            system_trace_ctx=request.system_trace_ctx or b"{}",
            user_trace_ctx=request.user_trace_ctx,
            run_id=request.run_id,
        )
    )


def _of_call(kind: type[Any], request: GatewayExecutorRequestData, **more: str) -> Any:
    """A message about a call, which repeats fields of its request."""
    same = {name: getattr(request, name) for name in WorkerRequestAckData.__struct_fields__}
    return kind(**same, **more)


async def _receive(socket: aiohttp.ClientWebSocketResponse, expected: Kind) -> bytes:
    """The payload of the next message. Raises ``RegistrationFailedError``, ``TransportError``."""
    received = await socket.receive()
    if received.type is not aiohttp.WSMsgType.BINARY:
        raise TransportError(f"the engine has closed the connection: {received.extra or socket.close_code}")
    message = decode(ConnectMessage, received.data)
    if message.kind == Kind.SYNC_FAILED:
        refusal = decode(SystemError, message.payload)
        raise RegistrationFailedError(f"the engine refuses the functions: {refusal.message} ({refusal.code})")
    if message.kind != expected:
        raise TransportError(f"the engine sent a message of kind {message.kind} instead of {expected.name}")
    return message.payload


def _seconds(duration: str, default: float) -> float:
    number = duration.removesuffix("s")
    return float(number) if number.isdigit() and float(number) else default
