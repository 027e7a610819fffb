"""The engine's Temporal client: payloads, cancellation, and requests to workflows by their ids.

Payloads are plain JSON, so that users can read histories."""

import asyncio
import contextlib
import datetime as dt
from collections.abc import Callable, Coroutine, Hashable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec
import temporalio.api.common.v1
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    StartWorkflowUpdateInput,
    StartWorkflowUpdateWithStartInput,
    WithStartWorkflowOperation,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowUpdateHandle,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.converter import (
    BinaryNullPayloadConverter,
    BinaryPlainPayloadConverter,
    CompositePayloadConverter,
    DataConverter,
    EncodingPayloadConverter,
    JSONProtoPayloadConverter,
)
from temporalio.service import RPCError, RPCStatusCode

from durably.engine.temporal.ids import WORKFLOWS_QUEUE
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


ENDED_BY_HAND = (WorkflowExecutionStatus.TERMINATED, WorkflowExecutionStatus.CANCELED)
"""Ends by a user. Of the engine's workflows, only runs end this way by themselves."""
K = TypeVar("K", bound=Hashable)


async def describe(client: Client, workflow_id: str) -> WorkflowExecutionDescription | None:
    """The workflow with an id, running or ended; ``None`` if there is none.

    Raises ``RPCError``.
    """
    with ignoring_not_found():
        return await client.get_workflow_handle(workflow_id).describe()
    return None


async def update_with_start(
    client: Client,
    update: str,
    argument: Any,
    *,
    workflow: Any,
    state: Sequence[Any] = (),
    id: str,
    summary: str,
    memo: Mapping[str, Any] | None = None,
    task_timeout: dt.timedelta | None = None,
    result_type: type | None = None,
) -> Any:
    """The result of an Update of the workflow with an id.

    ``workflow`` is its ``run`` method. The workflow starts with ``state``, ``memo`` and ``task_timeout`` if it does not
    run. Raises ``WorkflowUpdateFailedError`` and ``RPCError``.
    """
    start: WithStartWorkflowOperation[Any, Any] = WithStartWorkflowOperation(
        workflow,
        args=state,
        id=id,
        task_queue=WORKFLOWS_QUEUE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        memo=memo,
        task_timeout=task_timeout,
        static_summary=summary,
    )
    try:
        return await client.execute_update_with_start_workflow(
            update, argument, start_workflow_operation=start, result_type=result_type
        )
    except BaseException:
        _read_error(start)
        raise


def _read_error(start: WithStartWorkflowOperation[Any, Any]) -> None:
    """Read the error of the start, which the Update has raised.

    Otherwise asyncio would log it with a traceback.
    """
    reading = asyncio.ensure_future(start.workflow_handle())
    reading.add_done_callback(lambda done: done.cancelled() or done.exception())


@contextlib.contextmanager
def ignoring_not_found() -> Iterator[None]:
    """Ignore that a workflow has ended, or never ran."""
    try:
        yield
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise


class SharedReads(Generic[K]):
    """Reads that several requests share. Each begins after its requests.

    Concurrent events read the same topics and functions. A running read may miss records that were acknowledged after
    its start. So a request never joins a running read: all requests during it share the next one. At most one read of a
    key is running, and one waits. Belongs to one event loop.
    """

    def __init__(self, read: Callable[[K], Coroutine[Any, Any, Any]]) -> None:
        self._read = read
        self._under_way: dict[K, asyncio.Task[Any]] = {}
        self._next: dict[K, asyncio.Task[Any]] = {}

    async def __call__(self, key: K) -> Any:
        task = self._next.get(key)
        if task is None:
            before = self._under_way.get(key)
            task = asyncio.create_task(self._begin(key, before))
            task.add_done_callback(_note_error)
            if before is None:
                self._under_way[key] = task
            else:
                self._next[key] = task
        return await asyncio.shield(task)  # Other requests may wait for it.

    async def _begin(self, key: K, before: asyncio.Task[Any] | None) -> Any:
        task = asyncio.current_task()
        assert task is not None
        if before is not None:
            await asyncio.wait([before])
            self._under_way[key] = self._next.pop(key)
        try:
            return await self._read(key)
        finally:
            if self._under_way.get(key) is task:
                del self._under_way[key]


def _note_error(task: asyncio.Task[Any]) -> None:
    """Prevent the warning about an error that no caller reads.

    All requests for it were cancelled.
    """
    if not task.cancelled():
        task.exception()
