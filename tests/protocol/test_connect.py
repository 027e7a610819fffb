"""The encoding of Connect's messages, compared with the Protocol Buffers library and the official definitions."""

from typing import Any

import msgspec
import pytest
from inngest.connect._internal import connect_pb2

from durably.protocol import connect
from durably.protocol.connect import FrameInvalidError, Message, decode, encode

KINDS = [
    kind for kind in Message.__subclasses__() if hasattr(connect_pb2, kind.__name__)
] + connect.WorkerRequestAckData.__subclasses__()


def filled(kind: type[Message]) -> Message:
    """A message whose fields all have values."""
    values: dict[str, Any] = {}
    for number, field in enumerate(msgspec.structs.fields(kind), 1):
        if field.name == "unused":
            continue
        if field.type is str:
            values[field.name] = f"é{number}" * 100
        elif field.type is bytes:
            values[field.name] = bytes([number, 0, 255])
        elif field.type is bool:
            values[field.name] = True
        elif field.type is int:
            values[field.name] = 300 if field.name != "status" else 2
        elif field.type == list[str]:
            values[field.name] = ["a", "b"]
        elif field.type == list[connect.AppConfiguration]:
            values[field.name] = [filled(connect.AppConfiguration), connect.AppConfiguration("other")]
        else:
            assert isinstance(field.type, type)
            values[field.name] = filled(field.type)
    return kind(**values)


def official(kind: type[Message]) -> Any:
    return getattr(connect_pb2, kind.__name__)()


@pytest.mark.parametrize("kind", KINDS)
def test_messages_are_those_of_the_official_definition(kind: type[Message]) -> None:
    message, parsed = filled(kind), official(kind)
    parsed.ParseFromString(encode(message))
    named = {field.name for field, _ in parsed.ListFields()}
    known = {field.name for field in parsed.DESCRIPTOR.fields}
    ours = {name for name in kind.__struct_fields__ if name != "unused"}
    assert named == known & ours
    assert decode(kind, parsed.SerializeToString(deterministic=True)) == message
    assert decode(kind, encode(kind())) == kind()


def test_the_numbers_of_kinds_are_official() -> None:
    assert {kind.name: kind.value for kind in connect.Kind} == {
        **dict(connect_pb2.GatewayMessageType.items()),
        "WORKER_STATUS": 15,  # later than the SDK
    }


def test_unknown_fields_are_dropped() -> None:
    later = (
        encode(connect.AppConfiguration("app", functions=b"[]"))
        + b"\xf8\x07\x01\xf5\x07abcd\xf1\x07abcdefgh\xfa\x07\x01x"
    )
    assert decode(connect.AppConfiguration, later) == connect.AppConfiguration("app", functions=b"[]")


@pytest.mark.parametrize(
    "data",
    [b"\x0a\x05ab", b"\x0a", b"\x08\x01", b"\x0a\x01\xff", b"\x0b", b"\x08" + b"\xff" * 11, b"\xf8\x07\x01" * 300],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FrameInvalidError):
        decode(connect.AppConfiguration, data)


def test_many_fields_are_refused_before_they_are_decoded() -> None:
    apps = encode(connect.WorkerConnectRequestData(apps=[connect.AppConfiguration("app")] * 100))
    assert len(decode(connect.WorkerConnectRequestData, apps).apps) == 100
    with pytest.raises(FrameInvalidError, match="fields"):
        decode(connect.WorkerConnectRequestData, apps * 3)
