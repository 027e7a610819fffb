"""Connect: the messages between an engine and a worker that dials it, and their encoding (Protocol Buffers, proto3).

A frame of the WebSocket is one ``ConnectMessage``, whose payload is another message. The fields of each message are
numbered from 1, in the order of its struct.
"""

import functools
import types
import typing
from enum import IntEnum
from typing import Any, TypeVar

import msgspec

SUBPROTOCOL = "v0.connect.inngest.com"
START_PATH, FLUSH_PATH = "/v0/connect/start", "/v0/connect/flush"
MAX_FRAME_BYTES = 10 * 1024 * 1024
CONNECT_URL = "ws://connect"
"""The URL of functions whose app dials the engine."""
SHUTDOWN_REASON = "WORKER_SHUTDOWN"
"""The reason with which a worker closes the WebSocket after its last call."""

M = TypeVar("M", bound="Message")


class Kind(IntEnum):
    GATEWAY_HELLO = 0
    WORKER_CONNECT = 1
    GATEWAY_CONNECTION_READY = 2
    GATEWAY_EXECUTOR_REQUEST = 3
    WORKER_READY = 4
    WORKER_REQUEST_ACK = 5
    WORKER_REPLY = 6
    WORKER_REPLY_ACK = 7
    WORKER_PAUSE = 8
    WORKER_HEARTBEAT = 9
    GATEWAY_HEARTBEAT = 10
    GATEWAY_CLOSING = 11
    WORKER_REQUEST_EXTEND_LEASE = 12
    WORKER_REQUEST_EXTEND_LEASE_ACK = 13
    SYNC_FAILED = 14
    WORKER_STATUS = 15


class Message(msgspec.Struct):
    """Base of the messages. An absent field has its default."""


class ConnectMessage(Message):
    kind: int = 0
    payload: bytes = b""


class StartRequest(Message):
    exclude_gateways: list[str] = []


class StartResponse(Message):
    connection_id: str = ""
    gateway_endpoint: str = ""
    gateway_group: str = ""
    session_token: str = ""
    sync_token: str = ""


class AuthData(Message):
    session_token: str = ""
    sync_token: str = ""


class AppConfiguration(Message):
    """``functions`` is the JSON list of a sync."""

    app_name: str = ""
    app_version: str = ""
    unused: bytes = b""
    functions: bytes = b""


class SystemAttributes(Message):
    cpu_cores: int = 0
    mem_bytes: int = 0
    os: str = ""


class Timestamp(Message):
    seconds: int = 0
    nanos: int = 0


class WorkerConnectRequestData(Message):
    """``max_worker_concurrency`` is the limit of an ``instance_id``, 0 for none."""

    connection_id: str = ""
    instance_id: str = ""
    auth_data: AuthData = msgspec.field(default_factory=AuthData)
    capabilities: bytes = b""
    apps: list[AppConfiguration] = []
    worker_manual_readiness_ack: bool = False
    system_attributes: SystemAttributes = msgspec.field(default_factory=SystemAttributes)
    environment: str = ""
    framework: str = ""
    platform: str = ""
    sdk_version: str = ""
    sdk_language: str = ""
    started_at: Timestamp = msgspec.field(default_factory=Timestamp)
    max_worker_concurrency: int = 0


class GatewayConnectionReadyData(Message):
    """Durations in Go's form, such as ``10s``."""

    heartbeat_interval: str = ""
    extend_lease_interval: str = ""
    status_interval: str = ""


class GatewayExecutorRequestData(Message):
    """A call. ``request_payload`` is the body that it has over HTTP."""

    request_id: str = ""
    account_id: str = ""
    env_id: str = ""
    app_id: str = ""
    app_name: str = ""
    function_id: str = ""
    function_slug: str = ""
    step_id: str = ""
    request_payload: bytes = b""
    system_trace_ctx: bytes = b""
    user_trace_ctx: bytes = b""
    run_id: str = ""
    lease_id: str = ""
    job_id: str = ""


class WorkerRequestAckData(Message):
    request_id: str = ""
    account_id: str = ""
    env_id: str = ""
    app_id: str = ""
    function_slug: str = ""
    step_id: str = ""
    system_trace_ctx: bytes = b""
    user_trace_ctx: bytes = b""
    run_id: str = ""


class WorkerRequestExtendLeaseData(WorkerRequestAckData):
    lease_id: str = ""


class WorkerRequestExtendLeaseAckData(Message):
    """Without a ``new_lease_id``, the worker has lost the call."""

    request_id: str = ""
    account_id: str = ""
    env_id: str = ""
    app_id: str = ""
    function_slug: str = ""
    new_lease_id: str = ""


class ReplyStatus(IntEnum):
    NOT_COMPLETED = 0
    DONE = 1
    ERROR = 2


class SDKResponse(Message):
    """The answer to a call."""

    request_id: str = ""
    account_id: str = ""
    env_id: str = ""
    app_id: str = ""
    status: int = 0
    body: bytes = b""
    no_retry: bool = False
    retry_after: str = ""
    sdk_version: str = ""
    request_version: int = 0
    system_trace_ctx: bytes = b""
    user_trace_ctx: bytes = b""
    run_id: str = ""


class WorkerReplyAckData(Message):
    request_id: str = ""


class FlushResponse(Message):
    request_id: str = ""


class SystemError(Message):
    code: str = ""
    data: bytes = b""
    message: str = ""


class FrameInvalidError(ValueError):
    """The bytes are not a message of the expected kind."""


_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MOST_BITS = 64
_MOST_FIELDS = 256
"""Fields of a message. A frame is decoded before its sender is known, and may have a field in every two bytes."""


def frame(kind: Kind, message: Message | bytes = b"") -> bytes:
    """The frame of a message, which may be encoded."""
    return encode(ConnectMessage(kind, message if isinstance(message, bytes) else encode(message)))


def encode(message: Message) -> bytes:
    encoded = bytearray()
    for number, value in enumerate(msgspec.structs.astuple(message), 1):
        for each in value if isinstance(value, list) else (value,) if value else ():
            if isinstance(each, int):
                encoded.append(number << 3 | _VARINT)  # One byte: the numbers of all fields are below 16.
                _add_varint(encoded, each)
                continue
            content = each.encode() if isinstance(each, str) else encode(each) if isinstance(each, Message) else each
            encoded.append(number << 3 | _LENGTH)
            _add_varint(encoded, len(content))
            encoded += content
    return bytes(encoded)


def _add_varint(encoded: bytearray, value: int) -> None:
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)


@functools.cache
def _fields(kind: type[Message]) -> list[tuple[str, Any, bool]]:
    """The name of each field, its type, and whether it is repeated."""
    hints = typing.get_type_hints(kind)
    found = []
    for name in kind.__struct_fields__:
        is_list = isinstance(hints[name], types.GenericAlias)
        found.append((name, typing.get_args(hints[name])[0] if is_list else hints[name], is_list))
    return found


def decode(kind: type[M], data: bytes) -> M:
    """The message in ``data``. Unknown fields are dropped. Raises ``FrameInvalidError``."""
    values: dict[str, Any] = {}
    value: Any
    fields, at, count = _fields(kind), 0, 0
    try:
        while at < len(data):
            if (count := count + 1) > _MOST_FIELDS:
                raise FrameInvalidError(f"{kind.__name__} has more than {_MOST_FIELDS} fields")
            tag, at = _read_varint(data, at)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == _VARINT:
                value, at = _read_varint(data, at)
            elif wire_type in (_LENGTH, _FIXED32, _FIXED64):
                size = 4 if wire_type == _FIXED32 else 8
                if wire_type == _LENGTH:
                    size, at = _read_varint(data, at)
                value, at = data[at : at + size], at + size
                if at > len(data):
                    raise FrameInvalidError("a field is cut short")
            else:
                raise FrameInvalidError(f"the wire type {wire_type} is unknown")
            if not 1 <= number <= len(fields):
                continue
            name, field_type, is_list = fields[number - 1]
            if (wire_type == _VARINT) is not issubclass(field_type, int):
                raise FrameInvalidError(f"{kind.__name__}.{name} has the wire type {wire_type}")
            if field_type is str:
                value = value.decode()
            elif field_type is bool:
                value = bool(value)
            elif issubclass(field_type, Message):
                value = decode(field_type, value)
            if is_list:
                values.setdefault(name, []).append(value)
            else:
                values[name] = value
    except (IndexError, UnicodeDecodeError) as error:
        raise FrameInvalidError(f"{kind.__name__}: {error}") from None
    return kind(**values)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at an index, and the index after it. Raises ``IndexError``."""
    value = data[at]
    if value < 0x80:
        return value, at + 1
    value &= 0x7F
    for shift in range(7, _MOST_BITS, 7):
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
    raise FrameInvalidError("a number has more than 64 bits")
