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
from durably.engine.scheduling.calls.http_call import call_headers
from durably.engine.scheduling.registry import Function
from durably.engine.settings import EngineSettings
from durably.engine.sqlite.views import to_datetime
from durably.errors import CallStaleError, CheckpointRefusedError, TransportError
from durably.execution import StandIn
from durably.functions.checkpoints import Checkpoints
from durably.protocol.call import CheckpointRequest
from durably.protocol.headers import Query
from durably.protocol.limits import MAX_REQUEST_BYTES
from durably.protocol.sync import SyncRequest

from .heartbeat import Pulse


class HandedCall(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One call (spec §4.4.1). It is not signed, because no other process can send it. ``priority``: see ``CallAt``."""

    app_id: str
    function_id: str
    step_id: str
    headers: dict[str, str]
    body: bytes
    priority: int = 0


class HandedAnswer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``headers`` has lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes


def sync_of(handler: CommHandler) -> SyncRequest:
    """What tells the engine an app's functions. Its URL names the app, and is never called."""
    url = f"embedded://{quote(handler.client.app_id, safe='')}"
    return msgspec.convert(Syncer(handler.endpoint).payload(url), SyncRequest)


def hand_over(function: Function, data: CallData, body: bytes, settings: EngineSettings) -> HandedCall:
    headers = call_headers(data, settings)
    return HandedCall(function.app_id, function.id, data.call.step_id, headers, body, data.priority)


async def answer_call(
    call: HandedCall, handler: CommHandler, checkpoints: Checkpoints | None, stand_in: StandIn | None = None
) -> HandedAnswer:
    """Run the function, on this event loop or in its handler's thread pool."""
    return _to_handed(await handler.post(_request_of(call, checkpoints, stand_in)))


def answer_call_sync(call: HandedCall, handler: CommHandler, checkpoints: Checkpoints | None) -> HandedAnswer:
    """Run a sync function in this thread."""
    return _to_handed(handler.post_sync(_request_of(call, checkpoints, None)))


def _request_of(call: HandedCall, checkpoints: Checkpoints | None, stand_in: StandIn | None) -> CommRequest:
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


def _to_handed(response: CommResponse) -> HandedAnswer:
    return HandedAnswer(int(response.status_code), response.headers, response.body_bytes())


def read_handed(answer: HandedAnswer, settings: EngineSettings) -> Answer:
    if len(answer.body) > MAX_REQUEST_BYTES:
        message = f"the app's answer has more than {MAX_REQUEST_BYTES} bytes"
        return failed("AnswerTooLargeError", message, no_retry=True)
    return read_answer(answer.status, answer.headers, answer.body, to_datetime(settings.clock.now()))


class EngineCheckpoints:
    """``checkpoint`` is ``EmbeddedEngine.checkpoint``, or leads to it; see ``Checkpoints``.

    They are cheap, so they are the default unless ``are_default`` is false. ``pulse`` is the heartbeat of a process
    that others may give up. ``submit`` gets the function that makes the committing coroutine.
    """

    def __init__(
        self,
        checkpoint: Callable[[str, CheckpointRequest], Awaitable[None]],
        pulse: Pulse | None = None,
        *,
        are_default: bool = True,
        submit: Callable[[Callable[[], Coroutine[Any, Any, None]]], Awaitable[None]] = lambda commit: commit(),
    ) -> None:
        self._checkpoint = checkpoint
        self._submit = submit
        self._pulse = pulse
        self.are_default = are_default
        self.join_answers = True

    def certain_at_arrival(self) -> float:
        return time.monotonic() if self._pulse is None else self._pulse.certain_at_arrival()

    def may_be_stale(self, since: float) -> bool:
        return self._pulse is not None and self._pulse.is_doubtful(since)

    def commit(self, request: CheckpointRequest) -> Awaitable[None]:
        return self._submit(partial(self._commit, request))

    async def _commit(self, request: CheckpointRequest) -> None:
        try:
            await self._checkpoint(request.run_id, request)
        except (StaleCallError, RunNotFoundError) as error:
            raise CallStaleError(error.message) from None
        except (EngineError, TransportError) as error:
            raise CheckpointRefusedError(error.message) from None
