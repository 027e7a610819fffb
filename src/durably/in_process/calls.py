"""Calls and checkpoints without HTTP, within a process or over a link."""

import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec

from durably.comm import CommHandler, CommRequest, CommResponse, Syncer
from durably.engine.core.answers import Answer, failed, read_answer
from durably.engine.core.call_body import CallData
from durably.engine.core.errors import EngineError, RunNotFoundError, StaleCallError
from durably.engine.scheduling.registry import Function
from durably.engine.scheduling.requests.http_call import call_headers
from durably.engine.settings import EngineSettings
from durably.engine.views import to_datetime
from durably.errors import CallStaleError, CheckpointRefusedError, TransportError
from durably.execution import StandIn
from durably.functions.checkpoints import Checkpoints
from durably.protocol.call import CheckpointRequest
from durably.protocol.headers import Query
from durably.protocol.limits import MAX_REQUEST_BYTES
from durably.protocol.sync import SyncRequest

from .heartbeat import Heartbeat


class AssignedCall(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One call (spec §4.4.1). It is not signed, because no other process can send it. ``priority``: see ``CallAt``."""

    app_id: str
    function_id: str
    step_id: str
    headers: dict[str, str]
    body: bytes
    priority: int = 0


class CallAnswer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``headers`` has lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes


def sync_of(handler: CommHandler) -> SyncRequest:
    """The sync request with an app's functions. Its URL names the app, and is never called."""
    url = f"embedded://{quote(handler.client.app_id, safe='')}"
    return msgspec.convert(Syncer(handler.endpoint).payload(url), SyncRequest)


def assign(function: Function, data: CallData, body: bytes, settings: EngineSettings) -> AssignedCall:
    headers = call_headers(data, settings)
    return AssignedCall(function.app_id, function.id, data.call.step_id, headers, body, data.priority)


async def answer_call(
    call: AssignedCall, handler: CommHandler, checkpoints: Checkpoints | None, stand_in: StandIn | None = None
) -> CallAnswer:
    """Run the function, on this event loop or in its handler's thread pool."""
    return _to_call_answer(await handler.post(_request_of(call, checkpoints, stand_in)))


def answer_call_sync(call: AssignedCall, handler: CommHandler, checkpoints: Checkpoints | None) -> CallAnswer:
    """Run a sync function in this thread."""
    return _to_call_answer(handler.post_sync(_request_of(call, checkpoints, None)))


def _request_of(call: AssignedCall, checkpoints: Checkpoints | None, stand_in: StandIn | None) -> CommRequest:
    return CommRequest(
        body=call.body,
        headers=call.headers,
        query_params={Query.FUNCTION_ID.value: call.function_id, Query.STEP_ID.value: call.step_id},
        raw_request=None,
        request_url=f"embedded://{call.app_id}",
        is_connect=True,
        checkpoints=checkpoints,
        stand_in=stand_in,
    )


def _to_call_answer(response: CommResponse) -> CallAnswer:
    return CallAnswer(int(response.status_code), response.headers, response.body_bytes())


def read_call_answer(answer: CallAnswer, settings: EngineSettings) -> Answer:
    if len(answer.body) > MAX_REQUEST_BYTES:
        message = f"the app's answer has more than {MAX_REQUEST_BYTES} bytes"
        return failed("AnswerTooLargeError", message, no_retry=True)
    return read_answer(answer.status, answer.headers, answer.body, to_datetime(settings.clock.now()))


class EngineCheckpoints:
    """``Checkpoints`` without HTTP. ``checkpoint`` is ``EmbeddedEngine.checkpoint``, or reaches it.

    They are cheap, so they are the default unless ``are_default`` is false. ``heartbeat`` is set in a process that
    others may treat as dead. ``submit`` gets the function that makes the committing coroutine.
    """

    def __init__(
        self,
        checkpoint: Callable[[str, CheckpointRequest], Awaitable[None]],
        heartbeat: Heartbeat | None = None,
        *,
        are_default: bool = True,
        submit: Callable[[Callable[[], Coroutine[Any, Any, None]]], Awaitable[None]] = lambda commit: commit(),
    ) -> None:
        self._checkpoint = checkpoint
        self._submit = submit
        self._heartbeat = heartbeat
        self.are_default = are_default
        self.join_answers = True

    def certain_at_arrival(self) -> float:
        return time.monotonic() if self._heartbeat is None else self._heartbeat.certain_at_arrival()

    def may_be_stale(self, since: float) -> bool:
        return self._heartbeat is not None and self._heartbeat.may_be_stale(since)

    def commit(self, request: CheckpointRequest) -> Awaitable[None]:
        return self._submit(partial(self._commit, request))

    async def _commit(self, request: CheckpointRequest) -> None:
        try:
            await self._checkpoint(request.run_id, request)
        except (StaleCallError, RunNotFoundError) as error:
            raise CallStaleError(error.message) from None
        except (EngineError, TransportError) as error:
            raise CheckpointRefusedError(error.message) from None
