"""The engine's Temporal client: payloads, cancellation, unreachable servers.

Payloads are plain JSON, so that users can read histories.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec
import temporalio.api.common.v1
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    StartWorkflowUpdateInput,
    StartWorkflowUpdateWithStartInput,
    WorkflowUpdateHandle,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.converter import (
    BinaryNullPayloadConverter,
    BinaryPlainPayloadConverter,
    CompositePayloadConverter,
    DataConverter,
    EncodingPayloadConverter,
    JSONProtoPayloadConverter,
)
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal.compat import says_connection_broke

_STATUSES = (RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED)
"""Statuses of requests that may not have reached the server."""


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
    """Converts msgspec structs, and passes ``Raw`` JSON through.

    The SDK's own messages about workflows are Protobuf.
    """

    def __init__(self) -> None:
        super().__init__(
            BinaryNullPayloadConverter(),
            BinaryPlainPayloadConverter(),
            JSONProtoPayloadConverter(),
            _JsonPayloadConverter(),
        )


DATA_CONVERTER = DataConverter(payload_converter_class=EnginePayloadConverter)


def with_cancellation(client: Client) -> Client:
    """A client on the same connection that cancels Updates with their task.

    A cancelled Update raises ``CancelledError``. ``temporalio`` itself raises
    ``WorkflowUpdateRPCTimeoutOrCancelledError``, which cannot be distinguished from an unreachable server.
    """
    config = client.config()
    config["interceptors"] = [_CancellationInterceptor(), *config["interceptors"]]
    return Client(**config)


class _CancellationInterceptor(Interceptor):
    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        return _Updates(super().intercept_client(next))


class _Updates(OutboundInterceptor):
    async def start_workflow_update(self, input: StartWorkflowUpdateInput) -> WorkflowUpdateHandle[Any]:
        with _cancelled_as_such():
            return await super().start_workflow_update(input)

    async def start_update_with_start_workflow(
        self, input: StartWorkflowUpdateWithStartInput
    ) -> WorkflowUpdateHandle[Any]:
        with _cancelled_as_such():
            return await super().start_update_with_start_workflow(input)


@contextlib.contextmanager
def _cancelled_as_such() -> Iterator[None]:
    try:
        yield
    except WorkflowUpdateRPCTimeoutOrCancelledError as error:
        if isinstance(error.__cause__, asyncio.CancelledError):
            raise asyncio.CancelledError from None
        raise


def is_unreachable(error: Exception) -> bool:
    """Whether the server did not answer. It may have executed the request."""
    if isinstance(error, RPCError):
        return error.status in _STATUSES or says_connection_broke(error)
    return isinstance(error, WorkflowUpdateRPCTimeoutOrCancelledError)
