"""Between an engine and apps without HTTP: syncs, and what a call hands over and brings back, whichever process
answers it."""

from urllib.parse import quote

import msgspec

from durably.checkpointing import Checkpoints
from durably.comm import CommHandler, CommRequest, CommResponse, Syncer
from durably.engine.answers import Answer, failed, read_answer
from durably.engine.embedded.bodies import CallData
from durably.engine.embedded.caller import call_headers
from durably.engine.embedded.moments import to_datetime
from durably.engine.embedded.registry import Function
from durably.engine.embedded.settings import EngineSettings
from durably.execution import StandIn
from durably.protocol.headers import Query
from durably.protocol.limits import MAX_REQUEST_BYTES
from durably.protocol.sync import SyncRequest


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
    return msgspec.convert(Syncer(handler).payload(url), SyncRequest)


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
