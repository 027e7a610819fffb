"""The table of endpoints, in the order of routing."""

from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from . import actions, events, lists, runs, starting
from .endpoints import Bodies, EndpointParameter, Key, Route
from .exposure import Operation
from .messages import (
    Accepted,
    Completed,
    Description,
    HistoryPage,
    Page,
    QueryAnswer,
    RawHistoryPage,
    Reason,
    ResetRequest,
    Started,
    UpdateAccepted,
    UpdateDone,
)

OK, ACCEPTED = HTTPStatus.OK, HTTPStatus.ACCEPTED

_RUN = EndpointParameter("run_id", "query", str, "A run of the workflow; by default the latest.")
_WAIT = EndpointParameter("wait", "query", Annotated[int, Field(ge=0)], "Seconds to wait for a result.", 0)
_PREFER = EndpointParameter("Prefer", "header", str, "wait=N waits N seconds for the result.")
_KEY = EndpointParameter("Idempotency-Key", "header", str, "A repeated request with this key is executed once.")
_PAGE = EndpointParameter("page", "query", str, "The next_page of the previous page.")
_LAST_EVENT = EndpointParameter("Last-Event-ID", "header", str, "The id of the last event that was received.")


def _page_size(maximum: int, default: int) -> EndpointParameter:
    kind = Annotated[int, Field(ge=1, le=maximum)]
    return EndpointParameter("page_size", "query", kind, f"1 to {maximum}.", default)


_STATUSES: Any = Literal[tuple(lists.STATUSES.values())]
_LIST = (
    EndpointParameter("status", "query", _STATUSES),
    EndpointParameter("started_after", "query", AwareDatetime, "With an offset from UTC."),
    EndpointParameter("started_before", "query", AwareDatetime, "With an offset from UTC."),
    _page_size(lists.MAX_PAGE_SIZE, lists.PAGE_SIZE),
    _PAGE,
)
_UNSUPPORTED = (HTTPStatus.NOT_IMPLEMENTED,)

# fmt: off
ROUTES = (
    Route(Operation.START, "POST", "", starting.start, "Start {workflow}",
          {ACCEPTED: Started, OK: Completed}, (_KEY, _PREFER), Bodies.INPUT, Key.USED),
    Route(Operation.LIST, "GET", "", lists.list_workflows, "List {exposure}",
          {OK: Page}, _LIST),
    # Before the routes with an id, which it shadows.
    Route(Operation.SIGNAL_WITH_START, "POST", "signal-with-start/{name}", starting.signal_with_start,
          "Signal {name}, and first start {workflow} if it is not running",
          {ACCEPTED: Accepted}, (_KEY,), Bodies.WITH_START, Key.USED),
    Route(Operation.DESCRIBE, "GET", "{workflow_id}", lists.describe, "Status, times and pending activities",
          {OK: Description}, (_RUN,)),
    Route(Operation.RESULT, "GET", "{workflow_id}/result", runs.result, "The result, as soon as it is known",
          {OK: Completed, ACCEPTED: Started}, (_RUN, _WAIT)),
    Route(Operation.SIGNAL, "POST", "{workflow_id}/signals/{name}", actions.signal, "Signal {name}",
          {ACCEPTED: Accepted}, (_RUN, _KEY), Bodies.INPUT, Key.USED),
    Route(Operation.QUERY, "GET", "{workflow_id}/queries/{name}", actions.query, "Query {name}",
          {OK: QueryAnswer}, (_RUN,)),
    Route(Operation.QUERY, "POST", "{workflow_id}/queries/{name}", actions.query, "Query {name}",
          {OK: QueryAnswer}, (_RUN,), Bodies.INPUT),
    Route(Operation.UPDATE, "POST", "{workflow_id}/updates/{name}", actions.update, "Update {name}",
          {OK: UpdateDone, ACCEPTED: UpdateAccepted}, (_RUN, _KEY, _PREFER), Bodies.INPUT, Key.USED),
    Route(Operation.UPDATE, "GET", "{workflow_id}/updates/{name}/{update_id}", actions.update,
          "The result of an update {name}",
          {OK: UpdateDone, ACCEPTED: UpdateAccepted}, (_RUN, _WAIT)),
    Route(Operation.CANCEL, "POST", "{workflow_id}/cancel", actions.cancel, "Request its cancellation",
          {ACCEPTED: Accepted}, (_RUN,), Reason),
    Route(Operation.TERMINATE, "POST", "{workflow_id}/terminate", actions.terminate, "End it immediately",
          {ACCEPTED: Accepted}, (_RUN,), Reason),
    Route(Operation.RESET, "POST", "{workflow_id}/reset", actions.reset, "Continue from an earlier point, in a new run",
          {ACCEPTED: Accepted}, (_RUN,), ResetRequest, Key.REFUSED),
    Route(Operation.PAUSE, "POST", "{workflow_id}/pause", actions.pause, "Pause it until it is resumed",
          {ACCEPTED: Accepted}, (_RUN,), Reason, problems=_UNSUPPORTED),
    Route(Operation.RESUME, "POST", "{workflow_id}/resume", actions.resume, "Resume it after a pause",
          {ACCEPTED: Accepted}, (_RUN,), Reason, problems=_UNSUPPORTED),
    Route(Operation.HISTORY, "GET", "{workflow_id}/history", events.history, "Its events, in brief",
          {OK: HistoryPage}, (_RUN, _page_size(events.MAX_PAGE_SIZE, events.PAGE_SIZE), _PAGE)),
    Route(Operation.RAW_HISTORY, "GET", "{workflow_id}/history/raw", events.raw_history,
          "Its events with inputs and results, for replayers",
          {OK: RawHistoryPage}, (_RUN, _page_size(events.MAX_PAGE_SIZE, events.MAX_PAGE_SIZE), _PAGE)),
    Route(Operation.EVENTS, "GET", "{workflow_id}/events", events.events, "Live progress, as server-sent events",
          {OK: Bodies.STREAM, HTTPStatus.NO_CONTENT: Bodies.NONE}, (_RUN, _LAST_EVENT)),
)
# fmt: on
