"""The conversion of the engine's values to payloads of Temporal.

Payloads are plain JSON, so that people can read histories.
"""

from typing import Any

import msgspec
import temporalio.api.common.v1
from temporalio.converter import (
    BinaryNullPayloadConverter,
    BinaryPlainPayloadConverter,
    CompositePayloadConverter,
    DataConverter,
    EncodingPayloadConverter,
    JSONProtoPayloadConverter,
)


class _JsonPayloadConverter(EncodingPayloadConverter):
    @property
    def encoding(self) -> str:
        return "json/plain"

    def to_payload(self, value: Any) -> temporalio.api.common.v1.Payload | None:
        return temporalio.api.common.v1.Payload(
            metadata={"encoding": self.encoding.encode()}, data=msgspec.json.encode(value)
        )

    def from_payload(self, payload: temporalio.api.common.v1.Payload, type_hint: type | None = None) -> Any:
        return msgspec.json.decode(payload.data, type=Any if type_hint is None else type_hint)


class EnginePayloadConverter(CompositePayloadConverter):
    """Converts msgspec's structs, and ``Raw`` JSON as it is.

    The SDK's own answers about workflows are Protobuf.
    """

    def __init__(self) -> None:
        super().__init__(
            BinaryNullPayloadConverter(),
            BinaryPlainPayloadConverter(),
            JSONProtoPayloadConverter(),
            _JsonPayloadConverter(),
        )


DATA_CONVERTER = DataConverter(payload_converter_class=EnginePayloadConverter)
