"""The protocol's realtime API: publish to channels, and subscribe with tokens, as official SDKs do.

It is another face of the hub of channels (``engine/model/channels.py``). A subscriber gets what is published while it
is connected. A slow one is disconnected, with the reason.
"""

import asyncio
import base64
import codecs
import contextlib
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import msgspec
from aiohttp import WSCloseCode, WSMsgType, hdrs, web

from durably.engine.model.channels import Channels, check_name
from durably.engine.model.events import decode_json
from durably.protocol.call import decode
from durably.protocol.channels import (
    MAX_MESSAGE_BYTES,
    RUN_TOPIC,
    Message,
    MessageKind,
    NewMessage,
    is_run_id,
)
from durably.protocol.engine_errors import NotSupportedError

from .requests import ApiError, ApiKeys, json_response, read_body

TOKEN_SECONDS = 60
"""Seconds in which a subscriber must connect. The connection lasts longer."""
_MAX_TOKEN_LENGTH = 16 * 1024
_MAX_TOPICS = 1_000
_KEEP_ALIVE_SECONDS = 15.0
_SSE_SECONDS = 900.0
_MAX_FRAME_BYTES = 64 * 1024
_MAX_UNSENT_BYTES = 1024 * 1024
"""What a connection may have unsent, with what its socket has taken."""
_GATHER_SECONDS = 0.01
"""Seconds for which the messages to a subscriber are gathered."""
_CHUNK_BYTES, _MAX_CHUNKS = 1024, 1_000
_STREAM_SECONDS = 900.0
_SLOW = "this subscriber reads too slowly"
_ENV_ID = str(uuid5(NAMESPACE_URL, "durably"))
_KINDS = {RUN_TOPIC: "run"}
"""The official client drops messages of the kind ``step``."""

_encoder = msgspec.json.Encoder()
_json = msgspec.json.Decoder()


class Topic(msgspec.Struct, frozen=True):
    """A topic in a token, and in the requests for one."""

    channel: str
    name: str
    kind: str = "run"


_topics_decoder = msgspec.json.Decoder(list[Topic])


class _Claims(msgspec.Struct, omit_defaults=False):
    exp: float
    topics: list[Topic] = []
    iss: str = ""
    sub: str = ""
    env: str = ""
    publish: bool = False
    iat: float = 0
    jti: str = ""


class _Command(msgspec.Struct):
    kind: str
    data: Any = None


_HEADER = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")
_ISSUER = "rt.inngest.com"


class Tokens:
    """Signs and checks tokens (JWT, HS256). A development engine without keys makes one of its own."""

    def __init__(self, signing_keys: Iterable[str]) -> None:
        secret_keys = [hmac.digest(key.encode(), b"durably: tokens of realtime, 1", "sha256") for key in signing_keys]
        self._keys = secret_keys or [secrets.token_bytes(32)]

    def make(self, topics: list[Topic]) -> str:
        now = int(time.time())
        claims = _Claims(
            exp=now + TOKEN_SECONDS,
            topics=topics,
            iss=_ISSUER,
            sub=_ENV_ID,
            env=_ENV_ID,
            iat=now,
            jti=secrets.token_hex(8),
        )
        signed = _HEADER + b"." + _to_base64(_encoder.encode(claims))
        return (signed + b"." + _to_base64(hmac.digest(self._keys[0], signed, hashlib.sha256))).decode()

    def read(self, token: str) -> list[Topic]:
        """The topics of a token. Raises ``ApiError`` (401) if it is not valid."""
        signed, _, signature = token.rpartition(".")
        given = signature.encode(errors="replace")
        is_ours = len(token) <= _MAX_TOKEN_LENGTH and any(
            hmac.compare_digest(_to_base64(hmac.digest(key, signed.encode(errors="replace"), hashlib.sha256)), given)
            for key in self._keys
        )
        if not is_ours:
            raise ApiError(401, "the token is not one of this engine: get one from POST /v1/realtime/token")
        claims = msgspec.json.decode(_from_base64(signed.partition(".")[2]), type=_Claims)
        if claims.exp < time.time():
            raise ApiError(401, f"the token has expired: connect within {TOKEN_SECONDS} s")
        return claims.topics


def _to_base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _from_base64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class _Subscriber:
    """The topics of one connection, and the messages that it has not sent yet.

    ``frame`` makes what is sent of messages. It is written to the connection's transport, whose buffer is bounded here.
    """

    def __init__(
        self,
        channels: Channels,
        flusher: "_Flusher",
        transport: asyncio.Transport,
        frame: Callable[[list[bytes]], bytes],
    ) -> None:
        self._channels, self._flusher, self.transport, self._frame = channels, flusher, transport, frame
        self._topics: dict[str, set[str]] = {}
        self._unsent: list[bytes] = []
        self.ended = asyncio.Event()
        """The subscriber is too slow, or the engine stops."""
        self.is_slow = False
        channels.on_close.add(self.ended.set)

    def add(self, topics: Iterable[Topic]) -> None:
        for topic in topics:
            if topic.channel not in self._topics:
                self._topics[topic.channel] = set()
                self._channels.listen([topic.channel], self.put)
            self._topics[topic.channel].add(topic.name)

    def remove(self, topics: Iterable[Topic]) -> None:
        for topic in topics:
            names = self._topics.get(topic.channel, set())
            names.discard(topic.name)
            if not names and self._topics.pop(topic.channel, None) is not None:
                self._channels.ignore([topic.channel], self.put)

    def put(self, message: Message) -> None:
        if message.topic not in self._topics[message.channel] or self.is_slow:
            return
        if not self._unsent:
            self._flusher.add(self)
        self._unsent.append(_encode(message))

    def send(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            self.is_slow = True
            self.ended.set()
            self.leave()
            return
        self.transport.write(self._frame(unsent))

    def leave(self) -> None:
        self._channels.on_close.discard(self.ended.set)
        self._channels.ignore(self._topics, self.put)


class _Flusher:
    """Lets subscribers send what has arrived for them, all at the same time: few timers serve many."""

    def __init__(self) -> None:
        self._waiting: list[_Subscriber] = []

    def add(self, subscriber: _Subscriber) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._flush)
        self._waiting.append(subscriber)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for subscriber in waiting:
            subscriber.send()


_last: tuple[Message | None, bytes] = None, b""


def _encode(message: Message) -> bytes:
    """The JSON of a message. The hub passes a message to all subscribers in turn, so the last one is kept."""
    global _last
    if _last[0] is not message:
        _last = message, _encode_frame(message)
    return _last[1]


def _to_events(messages: list[bytes]) -> bytes:
    """Server-sent events, as a chunk of a body."""
    events = b"".join([b"data: %b\n\n" % message for message in messages])
    return b"%x\r\n%b\r\n" % (len(events), events)


def _to_text_frames(messages: list[bytes]) -> bytes:
    """Text frames of a WebSocket (RFC 6455 §5.2), which a server does not mask."""
    frames = []
    for message in messages:
        size = len(message)
        if size < 126:
            frames.append(bytes((0x81, size)))
        elif size < 2**16:
            frames.append(b"\x81\x7e" + size.to_bytes(2))
        else:
            frames.append(b"\x81\x7f" + size.to_bytes(8))
        frames.append(message)
    return b"".join(frames)


def _encode_frame(message: Message) -> bytes:
    frame: dict[str, Any] = {
        "kind": _KINDS.get(message.topic, message.kind.value),
        "data": message.data,
        "created_at": message.created_at,
        "channel": message.channel,
        "topic": message.topic,
        "env_id": _ENV_ID,
    }
    if message.stream_id is not None:
        frame["stream_id"] = message.stream_id
    if is_run_id(message.channel):
        frame["run_id"] = message.channel
    return _encoder.encode(frame)


class Realtime:
    """The handlers of the routes. ``keys`` are those of the engine."""

    def __init__(self, keys: ApiKeys) -> None:
        self._tokens = Tokens(keys.signing_keys)
        self._flusher = _Flusher()

    async def publish(self, channels: Channels, request: web.Request) -> web.Response:
        """``POST /v1/realtime/publish?channel=…&topic=…``: the body is the data, JSON or text."""
        channel, topic = request.query.get("channel", ""), request.query.get("topic", "")
        check_name("channel", channel)
        check_name("topic", topic)
        if topic.startswith("$"):
            raise ApiError(400, f"the topic {topic!r} is the engine's: topics of apps begin without $")
        if request.content_type == "text/stream":
            await _publish_stream(channels, request, channel, topic)
        else:
            body = await read_body(request, MAX_MESSAGE_BYTES)
            channels.publish([NewMessage(channel, topic, _as_json(body))])
        return web.Response()

    async def make_token(self, request: web.Request) -> web.Response:
        """``POST /v1/realtime/token``: a token for topics. The body is a list of them."""
        topics = decode_json(await read_body(request, _MAX_FRAME_BYTES), _topics_decoder.decode)
        if len(topics) > _MAX_TOPICS:
            raise ApiError(400, f"a token is for at most {_MAX_TOPICS} topics")
        for topic in topics:
            check_name("channel", topic.channel)
            check_name("topic", topic.name)
        token = self._tokens.make(topics)
        if len(token) > _MAX_TOKEN_LENGTH:
            raise ApiError(400, "the names of the topics are too long for one token: make several")
        return json_response({"jwt": token}, 201)

    async def connect(self, channels: Channels, request: web.Request) -> web.StreamResponse:
        """``GET /v1/realtime/connect?token=…``: a WebSocket with a text frame for each message."""
        topics = self._tokens.read(_token_of(request))
        socket = web.WebSocketResponse(
            heartbeat=_KEEP_ALIVE_SECONDS, max_msg_size=_MAX_FRAME_BYTES, compress=False, timeout=1.0
        )
        await socket.prepare(request)
        if (transport := request.transport) is None:  # The client has disconnected.
            return socket
        subscriber = _Subscriber(channels, self._flusher, transport, _to_text_frames)
        subscriber.add(topics)
        ending = asyncio.get_running_loop().create_task(_close_at_end(socket, subscriber))
        try:
            async for frame in socket:
                if frame.type is WSMsgType.TEXT:
                    self._execute(subscriber, frame.data)
        finally:
            subscriber.leave()
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
        return socket

    def _execute(self, subscriber: _Subscriber, text: str) -> None:
        """Subscribe or unsubscribe. As on the official server, there are no answers."""
        with contextlib.suppress(msgspec.MsgspecError, ApiError):
            command = msgspec.json.decode(text, type=_Command)
            if command.kind == "sub":
                subscriber.add(self._tokens.read(msgspec.convert(command.data, str)))
            elif command.kind == "unsub":
                subscriber.remove(msgspec.convert(command.data, list[Topic]))

    async def stream(self, channels: Channels, request: web.Request, headers: dict[str, str]) -> web.StreamResponse:
        """``GET /v1/realtime/sse?token=…``: server-sent events, for 15 minutes."""
        topics = self._tokens.read(_token_of(request))
        response = web.StreamResponse(
            headers=headers
            | {
                "content-type": "text/event-stream",
                "cache-control": "no-store, no-transform",
                "x-accel-buffering": "no",
                "access-control-allow-origin": "*",
            }
        )
        response.enable_chunked_encoding()
        subscriber: _Subscriber | None = None
        ends = time.monotonic() + _SSE_SECONDS
        try:
            await response.prepare(request)
            if request.method == hdrs.METH_HEAD:  # A subscriber writes past the response, which has no body.
                return response
            await response.write(b":\n\n")
            assert request.transport is not None
            subscriber = _Subscriber(channels, self._flusher, request.transport, _to_events)
            subscriber.add(topics)
            while not subscriber.ended.is_set() and (left := ends - time.monotonic()) > 0:
                try:
                    async with asyncio.timeout(min(left, _KEEP_ALIVE_SECONDS)):
                        await subscriber.ended.wait()
                except TimeoutError:
                    await response.write(b":\n\n")
            if subscriber.is_slow:
                await response.write(b": %b\n\n" % _SLOW.encode())
            await response.write_eof()
        except ConnectionError:  # The client has disconnected.
            pass
        finally:
            if subscriber is not None:
                subscriber.leave()
        return response


async def _close_at_end(socket: web.WebSocketResponse, subscriber: _Subscriber) -> None:
    """Close the socket of a slow subscriber, or when the engine stops."""
    await subscriber.ended.wait()
    with contextlib.suppress(ConnectionError):
        if subscriber.is_slow:
            try:
                async with asyncio.timeout(_KEEP_ALIVE_SECONDS):
                    await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=_SLOW.encode())
            except TimeoutError:
                subscriber.transport.abort()
        else:
            await socket.send_str('{"kind":"closing"}')
            await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the engine stops: connect again")


def _token_of(request: web.Request) -> str:
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    return request.query.get("token") or (token.strip() if scheme.lower() == "bearer" else "")


def _as_json(body: bytes) -> msgspec.Raw:
    """The body if it is JSON, otherwise its text as a JSON string."""
    try:
        decode(_json, body)  # as readers do: Python's json accepts NaN, UTF-16 and half of a surrogate pair
        return msgspec.Raw(body)
    except msgspec.DecodeError:
        return _string(body.decode(errors="replace"))


def _string(text: str) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(text))


async def _publish_stream(channels: Channels, request: web.Request, channel: str, topic: str) -> None:
    """Publish the text of a body while it arrives."""
    stream_id = secrets.token_hex(8)

    def publish(kind: MessageKind, text: str) -> None:
        channels.publish([NewMessage(channel, topic, _string(text), kind, stream_id)])

    publish(MessageKind.STREAM_START, stream_id)
    try:
        decoder, number = codecs.getincrementaldecoder("utf-8")(errors="replace"), 0
        async with asyncio.timeout(_STREAM_SECONDS):
            async for data in request.content.iter_any():
                for start in range(0, len(data), _CHUNK_BYTES):
                    number += 1
                    if number > _MAX_CHUNKS:
                        raise ApiError(413, f"a stream has at most {_MAX_CHUNKS} chunks")
                    if text := decoder.decode(data[start : start + _CHUNK_BYTES]):
                        publish(MessageKind.CHUNK, text)
        if text := decoder.decode(b"", final=True):
            publish(MessageKind.CHUNK, text)
    except TimeoutError:
        raise ApiError(408, f"a stream may take {_STREAM_SECONDS:.0f} s") from None
    finally:
        publish(MessageKind.STREAM_END, stream_id)


def channels_of(channels: Channels | None) -> Channels:
    """Raises ``NotSupportedError`` for an engine without messages."""
    if channels is None:
        raise NotSupportedError("this engine keeps no messages: use an engine of Durably")
    return channels
