"""What happened in a workflow.

In brief: which activity, timer or signal, and why one failed, never their contents. Raw: all that the server keeps, for
those who look after workflows.
"""

import asyncio
import datetime as dt
from collections.abc import Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent as RawEvent
from temporalio.converter import DataConverter

from .call import Call
from .failures import causes
from .messages import GatewayResponse, answer
from .models import HistoryEvent, HistoryPage, RawHistoryPage

_NAMES = (
    ("activity_type", "name"),
    ("workflow_type", "name"),
    ("signal_name", None),
    ("timer_id", None),
    ("marker_name", None),
)
"""Where events say what they are about."""


_MAXIMUM_PAGE = 1000
_AT_A_TIME = 50
"""Events that are turned into JSON without letting other requests in between: two milliseconds."""


async def history(call: Call) -> GatewayResponse:
    events, next_page = await _fetch(call, page_size=100)
    brief = Brief(call.client.data_converter)
    return answer(HistoryPage(events=[await brief.event(event) for event in events], next_page=next_page))


async def raw_history(call: Call) -> GatewayResponse:
    """As the server has it: payloads that are encrypted stay so."""
    events, next_page = await _fetch(call, page_size=_MAXIMUM_PAGE)
    page = RawHistoryPage(events=[], next_page=next_page)
    for start in range(0, len(events), _AT_A_TIME):
        page.events += [MessageToDict(event) for event in events[start : start + _AT_A_TIME]]
        await asyncio.sleep(0)
    return answer(page)


async def _fetch(call: Call, page_size: int) -> tuple[Sequence[RawEvent], str | None]:
    """The page that the request asks for, and the token of the next one.

    The token names the run, so that all pages are of one run, even if the workflow goes on in another one.
    """
    pages = call.pages(call.workflow_id, call.request.query("run_id") or "")
    run_id, token = _split(pages.take(call.request.query("page")))
    described = await call.describe()
    if run_id is not None and run_id != described.run_id:
        # It may have been handed over since the token was given.
        await call.describe_run(run_id)
    run_id = run_id or described.run_id
    events = call.handle(run_id).fetch_history_events(
        page_size=call.integer("page_size", page_size, 1, _MAXIMUM_PAGE),
        next_page_token=token,
        rpc_timeout=call.rpc_timeout,
    )
    await events.fetch_next_page()
    following = events.next_page_token
    return events.current_page or (), pages.give(run_id.encode() + b" " + following if following else None)


def _split(token: bytes | None) -> tuple[str | None, bytes | None]:
    if token is None:
        return None, None
    run_id, _, rest = token.partition(b" ")
    return run_id.decode(), rest


class Brief:
    """Reads events in their order: what an activity's later events are about stands in its first one.

    On a later page that one may be missing, and the name with it; ``begun_by`` tells which it is.
    """

    def __init__(self, converter: DataConverter) -> None:
        self._converter = converter
        self._names: dict[int, str] = {}

    async def event(self, raw: RawEvent) -> HistoryEvent:
        attributes = getattr(raw, raw.WhichOneof("attributes") or "", None)
        failure = getattr(attributes, "failure", None) if _has(attributes, "failure") else None
        return HistoryEvent(
            id=raw.event_id,
            time=raw.event_time.ToDatetime(dt.UTC),
            type=EventType.Name(raw.event_type).removeprefix("EVENT_TYPE_").lower(),
            name=self._name(raw, attributes),
            begun_by=_first(attributes) or None,
            attempt=getattr(attributes, "attempt", 0) or None,
            failure=None if failure is None else causes(await self._converter.decode_failure(failure)),
        )

    def _name(self, raw: RawEvent, attributes: Any) -> str | None:
        name = None
        for field, inner in _NAMES:
            value = getattr(attributes, field, None)
            name = name or (getattr(value, inner) if inner and value is not None else value)
        if raw.HasField("workflow_execution_update_accepted_event_attributes"):
            name = raw.workflow_execution_update_accepted_event_attributes.accepted_request.input.name
        if name:
            self._names[raw.event_id] = name
        return name or self._names.get(_first(attributes))


def _first(attributes: Any) -> int:
    fields = ("scheduled_event_id", "initiated_event_id", "accepted_event_id")
    return next((number for field in fields if (number := getattr(attributes, field, 0))), 0)


def _has(attributes: Any, field: str) -> bool:
    return attributes is not None and field in attributes.DESCRIPTOR.fields_by_name and attributes.HasField(field)
