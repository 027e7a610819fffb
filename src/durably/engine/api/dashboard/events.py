"""Events: what each started, and sending of events."""

import datetime as dt
from collections.abc import Iterable

import msgspec

from durably.engine.model.runs import EventPage, StoredEvent
from durably.protocol.engine_errors import EngineError, SelectionInvalidError
from durably.protocol.events import INTERNAL_PREFIX, patterns_of

from .formats import FormError, read_object, write_last, write_object
from .messages import DashboardResponse
from .overview import RANGES
from .values import answer_value, tree_of
from .visit import Live, PageError, Route, Visit

PAGE_SIZE = 50
_SHOWN_RUNS = 3
_OF_APPS = f'!event.name.startsWith("{INTERNAL_PREFIX}")'


async def show_events(visit: Visit) -> DashboardResponse:
    query = visit.query
    since = query.get("since")
    if since is not None and since not in RANGES:
        raise PageError(400, "The range is not known", f"It must be one of {', '.join(RANGES)}, not {since!r}.")
    error, page = None, EventPage(events=[], cursor=None)
    try:
        page = await visit.engine.search_events(
            name=query.get("name"),
            received_after=None if since is None else dt.datetime.now(dt.UTC) - RANGES[since],
            is_unmatched=True if "unmatched" in query else None,
            if_exp=_condition(visit),
            id=query.get("id"),
            limit=PAGE_SIZE,
            cursor=query.get("cursor"),
        )
    except SelectionInvalidError as invalid:
        error = invalid.message
    if "if" in query or "cursor" in query:  # An older page does not change, and an expression costs more.
        visit.live = None
    return await visit.page(
        "events.html",
        page=page,
        error=error,
        shown_runs=_SHOWN_RUNS,
        ranges=RANGES,
        is_filtered=bool(query.keys() - {"cursor"}),
        may_send=await visit.may("receive_events"),
    )


def _condition(visit: Visit) -> str | None:
    """The expression of the filter.

    The engine's own events are left out, unless a name or an id asks for them.
    """
    query = visit.query
    conditions = [f"({query['if']})"] if "if" in query else []
    if not query.keys() & {"name", "id"} and visit.info.offers("search_events.if_exp"):
        conditions.append(_OF_APPS)
    return " && ".join(conditions) or None


async def show_event(visit: Visit) -> DashboardResponse:
    event = await _event(visit, visit.arguments["event_id"])
    runs = await visit.engine.event_runs(event.id)
    patterns = patterns_of(event.name)
    triggered = [
        function
        for function in await visit.engine.list_functions()
        if not {trigger.event for trigger in function.config.triggers}.isdisjoint(patterns)
    ]
    return await visit.page(
        "event.html",
        event=event,
        tree=tree_of(msgspec.json.encode(event.data)),
        runs=runs,
        triggered=triggered,
        may_send=await visit.may("receive_events"),
    )


async def show_value(visit: Visit) -> DashboardResponse:
    """The event's data in full, or its part at the JSON pointer ``at``."""
    event = await _event(visit, visit.arguments["event_id"])
    return await answer_value(visit, event.id, msgspec.json.encode(event.data), "data", event=event)


async def _event(visit: Visit, event_id: str) -> StoredEvent:
    event = await visit.engine.get_event(event_id)
    if event is None:
        raise PageError(404, "There is no such event", "The id may be mistyped, or the event was purged.")
    return event


async def show_form(visit: Visit) -> DashboardResponse:
    """The form to send an event.

    ``?event=`` is the id of one to send again, ``?name=`` the name of a new one, which begins with the last one's data.
    """
    name, text = visit.query.get("name", ""), "{}"
    if (event_id := visit.query.get("event")) is not None:
        event = await _event(visit, event_id)
        name, text = event.name, write_object(event.data)
    elif name and visit.info.offers("search_events"):
        page = await visit.engine.search_events(name=name, limit=1)
        text = write_last(page.events[0]) if page.events else "{}"
    return await _form_page(visit, name, text)


async def _form_page(visit: Visit, name: str, text: str, error: str | None = None) -> DashboardResponse:
    functions = await visit.engine.list_functions()
    triggers = (trigger.event for function in functions for trigger in function.config.triggers)
    return await visit.page(
        "send.html",
        status=200 if error is None else 422,
        name=name,
        text=text,
        error=error,
        names=sorted({each for each in triggers if each and "*" not in each}),
        may_send=await visit.may("receive_events"),
    )


async def send(visit: Visit) -> DashboardResponse:
    name, text = visit.form.get("name", ""), visit.form.get("data", "{}")
    try:
        body = msgspec.json.encode({"name": name, "data": read_object(text)})
        receipt = await visit.engine.receive_events(body)
    except FormError as error:
        return await _form_page(visit, name, text, str(error))
    except EngineError as error:
        return await _form_page(visit, name, text, error.message)
    return visit.redirect(f"/events/{receipt.ids[0]}", notice="sent")


async def send_again(visit: Visit) -> DashboardResponse:
    return await send_copies(visit, [await _event(visit, visit.arguments["event_id"])])


async def send_copies(visit: Visit, events: Iterable[StoredEvent]) -> DashboardResponse:
    """Send copies of events, with ids of their own. The first one's page shows what it starts."""
    fields = ("name", "data", "user", "v", "meta")
    copies = [{name: value for name in fields if (value := getattr(event, name)) is not None} for event in events]
    receipt = await visit.engine.receive_events(msgspec.json.encode(copies))
    return visit.redirect(f"/events/{receipt.ids[0]}", notice="sent")


ROUTES = (
    Route("GET", "/events", show_events, live=Live.ALL, needs="search_events"),
    Route("GET", "/events/send", show_form),
    Route("POST", "/events/send", send, action="receive_events"),
    Route("GET", "/events/{event_id}", show_event, live=Live.ALL),
    Route("GET", "/events/{event_id}/value", show_value),
    Route("POST", "/events/{event_id}/send", send_again, action="receive_events"),
)
