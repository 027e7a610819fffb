"""The gateway: its table of endpoints, and the path from a request to a response, independent of frameworks.

First a request is matched with an endpoint and validated, without the server. Then ``authorize`` decides. Then the
endpoint's function, such as ``starting.start``, calls the server.
"""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from http import HTTPStatus
from types import NoneType
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, ValidationError
from temporalio.common import SearchAttributeKey

from durably.execution import drive
from durably.io.http_client import IO, BlockingIO
from durably.protocol.headers import is_of_another_site
from durably.protocol.options import check_function, check_text, check_type
from durably.temporal.client.connection import Temporal
from durably.temporal.errors import TemporalSettingsError, TemporalUnreachableError
from durably.temporal.namespace import OWNER_ATTRIBUTE, DeclaredAttribute, ensure_keyword
from durably.temporal.request_log import (
    HTTP_HEADER,
    current_request_id,
    note_workflow,
    usable_request_id,
    web_request,
)

from . import actions, events, lists, runs, starting
from .authorization import Authorize, Guard, Identify, access_of, check_principal, is_anonymous, principal_key
from .call import STARTS, Call
from .endpoints import Bodies, Endpoint, EndpointParameter, Endpoints, Key, Route
from .exposure import Exposure, Operation
from .idempotency import KeyedRequest, keyed_request
from .inputs import check_id
from .messages import (
    Accepted,
    Completed,
    Description,
    GatewayRequest,
    GatewayResponse,
    HistoryPage,
    Page,
    QueryAnswer,
    RawHistoryPage,
    Reason,
    ResetRequest,
    Started,
    UpdateAccepted,
    UpdateDone,
    has_more_values,
)
from .openapi import Documents, SecuritySchemes
from .problems import Problem, bad_request, invalid_input, to_problem, too_large, too_many_values
from .services import Limits, Metrics, PageTokens, Secret, Services, StreamSlots

# The table of endpoints, in the order of routing

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

_REQUEST_ID = HTTP_HEADER.lower()
_SENT_BY_FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})


class Gateway:
    """HTTP endpoints for the workflows of ``exposures`` (see ``expose``).

    - ``authorize``: gets each action before the server is called, and returns whether it is allowed. A synchronous one
      may block: it runs in the request's thread, or in another thread if requests are on an event loop.
    - ``allow_anonymous=True``: required without ``authorize``.
    - ``identify``: returns a unique string for each principal (``None`` is anonymous). It is needed if ``pk``, ``id``
      and ``sub`` do not distinguish principals: see ``authorization.principal_key``.
    - ``secret``: 16 characters or more; signs page tokens. The default is the environment variable
      ``TEMPORAL_GATEWAY_SECRET``, the framework's own secret, or a random secret of the process.
    - ``owner_attribute``: the search attribute, a Keyword, with the owner of a workflow (``expose(owner=…)``).
    - ``security_schemes``: maps names to OpenAPI security schemes. A request needs one of them. They only document the
      API: ``authorize`` must enforce them.
    - ``limits``: limits of waits, bodies and streams.
    - ``app_parameters``: names of query parameters that the app itself reads, such as in ``authorize``. The gateway
      answers 400 to unknown ones. It knows the parameters of the dependencies of FastAPI's ``router()``.
    - ``title``: that of the OpenAPI document, at ``openapi.json``.
    - ``docs=True``: adds a page with Swagger UI at ``docs``, with its code from a CDN. It may be the URL of the app's
      own copy of the npm package ``swagger-ui-dist``. ``authorize`` guards neither the document nor the page.

    Raises ``TemporalSettingsError`` without ``authorize`` or ``allow_anonymous``, for two exposures with one name, and
    for a short secret.
    """

    def __init__(
        self,
        temporal: Temporal,
        exposures: Sequence[Exposure],
        *,
        authorize: Authorize | None = None,
        allow_anonymous: bool = False,
        identify: Identify | None = None,
        secret: Secret | None = None,
        owner_attribute: str = OWNER_ATTRIBUTE,
        security_schemes: SecuritySchemes | None = None,
        limits: Limits | None = None,
        app_parameters: Iterable[str] = (),
        title: str = "Workflows",
        docs: bool | str = False,
    ) -> None:
        check_function(identify, "Gateway: identify", TemporalSettingsError)
        check_text(owner_attribute, "Gateway: owner_attribute", TemporalSettingsError)
        check_type(limits, "Gateway: limits", (Limits, NoneType), "Limits(…)", TemporalSettingsError)
        self._guard = Guard(authorize, allow_anonymous, server="Gateway", permission="do everything that is exposed")
        self.temporal, self.allow_anonymous = temporal, allow_anonymous
        self.exposures: Mapping[str, Exposure] = {exposure.name: exposure for exposure in exposures}
        if len(self.exposures) < len(exposures):
            raise TemporalSettingsError("two exposures have the same name: give one of them name=")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", owner_attribute):
            raise TemporalSettingsError(
                f'owner_attribute="{owner_attribute}" is not the name of a search attribute: letters, digits, _'
            )
        for exposure in exposures:
            where = f"expose({exposure.workflow_type}"
            temporal.add_search_attributes(*exposure.attribute_keys, where=f"{where})")
            if exposure.owner is not None:
                if allow_anonymous:
                    raise TemporalSettingsError(
                        f"{exposure.name} has owner=, and allow_anonymous=True has no owners: give authorize= instead"
                    )
                # The first request registers it: a namespace without it is not an error yet.
                key = SearchAttributeKey.for_keyword(owner_attribute)
                temporal.owner_attributes.append(DeclaredAttribute(key, f"{where}, owner=…)"))
        self.security_schemes = security_schemes or {}
        self.limits = limits or Limits()
        self.endpoints = Endpoints(ROUTES, exposures)
        self._documents = Documents(self.endpoints, self.security_schemes, title, docs)
        self._app_parameters = frozenset([app_parameters] if isinstance(app_parameters, str) else app_parameters)
        self._services = Services(
            temporal=temporal,
            limits=self.limits,
            owner_attribute=owner_attribute,
            identify=identify,
            metrics=Metrics(temporal),
            page_tokens=PageTokens(secret),
            stream_slots=None if allow_anonymous else StreamSlots(self.limits.max_streams),
        )

    async def handle(self, request: GatewayRequest, *, io: IO | None = None) -> GatewayResponse:
        """The response to a request. Errors of clients and of the server are problems."""
        start, endpoint = time.perf_counter(), None
        try:
            if (document := self._documents.answer(request)) is not None:
                return document
            if request.method == "OPTIONS":
                return self.endpoints.options(request.path)
            endpoint, ids = self.endpoints.find(request.method, request.path)
            given_id = request.headers.get(_REQUEST_ID)
            # A middleware may have set another id.
            with web_request(current_request_id() or usable_request_id(given_id)) if given_id else nullcontext():
                response = await self._respond(request, endpoint, ids, io)
        except Exception as error:
            response = to_problem(error).response()
        self._services.metrics.count(endpoint, response.status_code, start)
        return response.without_body() if request.method == "HEAD" else response

    def handle_sync(self, request: GatewayRequest) -> GatewayResponse:
        """``handle`` for threads."""
        return drive(self.handle(request, io=BlockingIO()))

    async def _respond(
        self, request: GatewayRequest, endpoint: Endpoint, ids: Mapping[str, str], io: IO | None
    ) -> GatewayResponse:
        is_start = endpoint.operation in STARTS
        request.principal = check_principal(request.principal)
        access = access_of(endpoint.exposure, request.principal)  # Before the body is read: a 401 costs less.
        endpoint.check_names(request.query, {*self._app_parameters, *request.app_parameters})
        params = endpoint.parse_query(request.query)
        if run_id := params.get("run_id"):
            check_id(run_id, "run_id")
        value = self._parse(request, endpoint)
        call = Call(
            services=self._services,
            request=request,
            endpoint=endpoint,
            ids=ids,
            access=access,
            params=params,
            value=value,
            keyed=self._keyed(request, endpoint, value),
            workflow_id=ids.get("workflow_id", ""),
        )
        if is_start:
            call.workflow_id = starting.choose_id(call)
        if not self._guard.is_open:
            await self._guard.check(call.action(), io, request.call_blocking)
            if call.keyed is not None and is_anonymous(request.principal):
                raise Problem(
                    HTTPStatus.BAD_REQUEST,
                    "no-principal",
                    "an Idempotency-Key belongs to a principal, and this request has none: all such callers would "
                    "share their keys. Send no key, or authenticate. In the app, principal= of router(), blueprint(), "
                    "routes() or urls() returns the principal; to let all callers share their keys, return the same "
                    'string for each, such as principal=lambda request: "everyone"',
                )
        if is_start:
            call.start_values = starting.start_values(call)
        work = self._perform(call)
        return await (work if io is None else io.resolve(work))

    def _parse(self, request: GatewayRequest, endpoint: Endpoint) -> Any:
        """The validated input. Raises a problem.

        A page of another site cannot send JSON with its user's cookies, unless the app allows it. An empty body may
        have any type, except if the browser reports that such a page sends it.
        """
        try:
            if endpoint.takes_arguments:
                return endpoint.parse_arguments(request.query)
            if endpoint.body is None:
                return None
            body, limits = request.body, self.limits
            self.check_length(len(body))
            if len(body) > limits.max_values and has_more_values(body, limits.max_values):
                raise too_many_values(limits.max_values)
            media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            is_json = media_type == "application/json" or media_type.endswith("+json")
            is_empty = not body and media_type not in _SENT_BY_FORMS
            if not is_json and (not is_empty or is_of_another_site(request.headers)):
                raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "no-json", "send JSON, as application/json")
            return endpoint.body.parse(body)
        except ValidationError as error:
            # Only here: a later validation error is not the client's.
            raise invalid_input(error) from None

    def _keyed(self, request: GatewayRequest, endpoint: Endpoint, value: Any) -> KeyedRequest | None:
        """The request's ``Idempotency-Key``, if the endpoint uses it. Raises a problem."""
        given = request.headers.get("idempotency-key")
        if given is None or endpoint.route.key is Key.IGNORED:
            return None
        if endpoint.route.key is Key.REFUSED:
            raise bad_request(
                "Idempotency-Key does not work here, and each request would be executed: omit it. Before you repeat a "
                "request without a response, check whether it was executed"
            )
        handler = "" if endpoint.handler is None else endpoint.handler.name
        place = (endpoint.workflow_type, endpoint.operation.value, handler)
        return keyed_request(given, principal_key(request.principal, self._services.identify), place, value)

    async def _perform(self, call: Call) -> GatewayResponse:
        try:
            call.client = await self.temporal.client()
        except TemporalUnreachableError:
            if call.workflow_id:
                note_workflow(call.workflow_id)  # Otherwise the client notes it.
            raise
        if call.endpoint.id_names:
            await call.describe()
        elif call.exposure.owner is not None:
            await ensure_keyword(call.client, self._services.owner_attribute, call.rpc_timeout)
        return await call.endpoint.route.perform(call)

    # For adapters

    def check_length(self, length: int | None) -> None:
        """Raises a problem for a body over the limit. Adapters call it before they read."""
        if length is not None and length > self.limits.max_body:
            raise too_large(self.limits.max_body)

    def refuse(self, method: str, path: str, problem: Problem) -> GatewayResponse:
        """The response to a request that the framework refuses."""
        response = problem.response()
        try:
            endpoint, _ = self.endpoints.find(method, path)
        except Problem:
            endpoint = None
        self._services.metrics.count(endpoint, response.status_code, time.perf_counter())
        return response.without_body() if method == "HEAD" else response
