"""Cancellation of Updates that wait for the server.

``temporalio`` raises ``WorkflowUpdateRPCTimeoutOrCancelledError`` in a task that is cancelled, which looks as if the
server were away.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    StartWorkflowUpdateInput,
    StartWorkflowUpdateWithStartInput,
    WorkflowUpdateHandle,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)


def with_cancellation(client: Client) -> Client:
    """A client on the same connection, whose Updates are cancelled with their task.

    They raise ``CancelledError``.
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
