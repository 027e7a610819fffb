"""What happened in a workflow, in brief: which activity, timer or signal, and why one failed. Never their contents."""

import datetime as dt
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent as RawEvent
from temporalio.converter import DataConverter

from .call import Call
from .failures import causes
from .messages import GatewayResponse, answer
from .models import HistoryEvent, HistoryPage
from .reading import page_after, page_token

_NAMES = (
    ("activity_type", "name"),
    ("workflow_type", "name"),
    ("signal_name", None),
    ("timer_id", None),
    ("marker_name", None),
)
"""Where events say what they are about."""


async def history(call: Call) -> GatewayResponse:
    events = call.handle().fetch_history_events(
        page_size=call.integer("page_size", 100, 1, 1000),
        next_page_token=page_token(call.request.query("page")),
        rpc_timeout=call.rpc_timeout,
    )
    await events.fetch_next_page()
    brief = Brief(call.client.data_converter)
    page = HistoryPage(
        events=[await brief.event(event) for event in events.current_page or ()],
        next_page=page_after(events.next_page_token),
    )
    return answer(page)


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
