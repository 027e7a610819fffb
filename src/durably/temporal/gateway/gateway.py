"""The gateway: the path from a request to a response, and of a start to Temporal's client, independent of frameworks.

A request goes through ``handle``, ``_respond`` (it is matched with an endpoint and validated, without the server; then
``authorize`` decides) and ``_perform`` (the process is connected, and the workflow in the URL is described). A start
then goes through ``start``, ``_start_once`` if its id may be in use, and ``_start``, which calls
``client.start_workflow``. The functions of other operations are in ``actions``, ``lists``, ``runs`` and ``events``.
"""

import functools
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from pydantic import ValidationError
from temporalio.client import WorkflowExecutionDescription, WorkflowExecutionStatus, WorkflowHandle
from temporalio.common import SearchAttributeKey, WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from durably.execution import drive
from durably.io.http_client import IO, BlockingIO
from durably.protocol.headers import is_of_another_site
from durably.protocol.options import check_function
from durably.temporal.client.connection import Temporal
from durably.temporal.compat import PAUSED
from durably.temporal.errors import TemporalSettingsError, TemporalUnreachableError
from durably.temporal.namespace import (
    OWNER_ATTRIBUTE,
    REGISTER_COMMANDS,
    DeclaredAttribute,
    ensure_keyword,
    is_open,
    owned_by,
)
from durably.temporal.request_log import (
    HTTP_HEADER,
    current_request_id,
    note_workflow,
    usable_request_id,
    web_request,
)

from . import actions, events, lists, runs
from .authorization import Authorize, Guard, Identify, access_of, check_principal, is_anonymous, principal_key
from .call import Call
from .endpoints import ROUTES, Endpoint, Endpoints, Key
from .exposure import Exposure, Operation
from .idempotency import MARK, KeyedRequest, find_repetition, is_repetition, keyed_request, one_request
from .inputs import check_id
from .messages import Accepted, GatewayRequest, GatewayResponse, Links, Started, answer, has_more_values
from .openapi import Documents, SecuritySchemes
from .problems import (
    Problem,
    already_started,
    bad_request,
    internal_error,
    invalid_input,
    logger,
    to_problem,
    too_large,
)
from .services import Limits, Metrics, PageTokens, Secret, Services, StreamSlots

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
        self._guard = Guard(authorize, allow_anonymous)
        self.temporal, self.allow_anonymous = temporal, allow_anonymous
        self.exposures: Mapping[str, Exposure] = {exposure.name: exposure for exposure in exposures}
        if len(self.exposures) < len(exposures):
            raise TemporalSettingsError("two exposures have the same name: give one of them name=")
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
        request.principal = check_principal(request.principal)
        access = access_of(endpoint.exposure, request.principal)  # Before the body is read: a 401 costs less.
        endpoint.check_names(request.query, {*self._app_parameters, *request.app_parameters})
        params = endpoint.parse_query(request.query)
        if run_id := params.get("run_id"):
            check_id(run_id, "run_id")
        value = self._parse(request, endpoint)
        keyed = self._keyed(request, endpoint, value)
        call = Call(self._services, request, endpoint, ids, access, params, value, keyed)
        exposure, principal = endpoint.exposure, request.principal
        if call.is_start:
            # A random id, or one of the idempotency key: a repeated request finds the same workflow.
            call.workflow_id = f"{exposure.name}-{uuid.uuid4() if keyed is None else keyed.id}"
            if exposure.id is not None:
                call.workflow_id = check_id(exposure.id(call.start_input, principal, access.owner))
        if not self._guard.is_open:
            await self._guard.check(call.action(), io, request.call_blocking)
            if keyed is not None and is_anonymous(principal):
                raise Problem(
                    HTTPStatus.BAD_REQUEST,
                    "no-principal",
                    "an Idempotency-Key belongs to a principal, and this request has none: all such callers would "
                    "share their keys. Send no key, or authenticate. In the app, principal= of router(), blueprint(), "
                    "routes() or urls() returns the principal; to let all callers share their keys, return the same "
                    'string for each, such as principal=lambda request: "everyone"',
                )
        if call.is_start:  # The exposure's functions may need the context of the request.
            call.start_values = {
                name: make(call.start_input, principal) for name, make in exposure.start_values.items()
            }
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
                detail = f"the body has more than {limits.max_values} values"
                raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-many-values", detail)
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
        return await _PERFORM[call.endpoint.operation](call)

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


# Starts


@dataclass(frozen=True)
class _Outcome:
    """A new workflow, that of an earlier request, or a running one with the id."""

    run_id: str | None
    is_replay: bool = False
    attached_to: WorkflowExecutionStatus | None = None


async def start(call: Call) -> GatewayResponse:
    """Start a workflow, once for a key. Returns its result if the client waits."""
    terminates = call.exposure.start_options["id_conflict_policy"] is WorkflowIDConflictPolicy.TERMINATE_EXISTING
    is_checked = call.exposure.attaches or terminates or not call.access.sees_all
    # A random id is new.
    may_exist = call.keyed is not None or (call.exposure.id is not None and is_checked)
    found = await _start_once(call) if may_exist else _Outcome((await _start(call)).result_run_id)
    run_id = found.run_id
    attached = True if found.attached_to is not None else None
    headers = {"location": call.location}
    if (wait := call.preferred_wait()) is not None:
        headers["preference_applied"] = f"wait={wait:g}"
        try:
            with call.waiting():
                done = await runs.wait_for_result(call, run_id or "", wait)
        except (RPCError, Problem) as error:
            problem = to_problem(error)
            # The server has started the workflow before it went down, or the owner has changed.
            if not problem.passes and problem.status is not HTTPStatus.NOT_FOUND:
                raise problem from error.__cause__
            done = None
        if done is not None:
            done = done.model_copy(update={"attached": attached})
            return answer(done, HTTPStatus.OK, is_replay=found.is_replay, **headers)
    status: Literal["running", "paused"] = "paused" if found.attached_to is PAUSED else "running"
    links = Links.of(call.location)
    started = Started(workflow_id=call.workflow_id, run_id=run_id, status=status, attached=attached, links=links)
    return answer(started, HTTPStatus.ACCEPTED, is_replay=found.is_replay, **headers)


async def _start_once(call: Call) -> _Outcome:
    """Start the workflow, or return one that exists.

    The key is stored in the workflow's memo. The first attempt reserves the id, whatever the exposure's policies are:
    they apply only to an id of the same owner that another request has used.
    """
    options = call.exposure.start_options
    try:
        handle = await _start(
            call,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
        )
        return _Outcome(handle.result_run_id)
    except WorkflowAlreadyStartedError as error:
        latest = await _describe(call, None)
        if (found := await _existing(call, latest)) is not None:
            return found
        is_refused = (
            options["id_conflict_policy"] is WorkflowIDConflictPolicy.FAIL
            if is_open(latest.status)
            else options["id_reuse_policy"] is WorkflowIDReusePolicy.REJECT_DUPLICATE
        )
        if is_refused:
            raise error
    # Start another one. For the server, simultaneous requests with this key are one, whatever the policies are.
    try:
        with one_request(call.client, call.keyed):
            handle = await _start(call)
    except WorkflowAlreadyStartedError:
        # Another request was faster.
        if call.exposure.attaches and (found := await _existing(call, await _describe(call, None))) is not None:
            return found
        raise
    started = await _describe(call, handle.result_run_id)
    if not call.reaches(started):
        raise already_started(call.workflow_id)
    await _was_started_with_key(call, started)
    return _Outcome(handle.result_run_id)


async def _existing(call: Call, latest: WorkflowExecutionDescription) -> _Outcome | None:
    """The workflow with the id; ``None`` if the policies decide about a start.

    Raises a problem for a workflow of another owner, and for a running one of another type: the server would attach to
    it, or terminate it.
    """
    if not call.reaches(latest):
        raise already_started(call.workflow_id)
    if await _was_started_with_key(call, latest):
        return _Outcome(latest.run_id, is_replay=True)
    if not is_open(latest.status):
        return None
    if latest.workflow_type != call.exposure.workflow_type:
        raise already_started(call.workflow_id)
    return _Outcome(latest.run_id, attached_to=latest.status) if call.exposure.attaches else None


async def _was_started_with_key(call: Call, execution: WorkflowExecutionDescription) -> bool:
    """Whether an earlier request with the key started it. Raises the problem 422 for another input."""
    keyed = call.keyed
    if keyed is None or execution.workflow_type != call.exposure.workflow_type:
        return False
    stored = await execution.memo_value(MARK, {})
    # The app's own code may have started it, with any memo.
    if not isinstance(stored, Mapping) or stored.get("key") != keyed.scope:
        return False
    keyed.check_input(stored)
    return True


async def _describe(call: Call, run_id: str | None) -> WorkflowExecutionDescription:
    """A run with the id, of any type and owner."""
    handle = call.client.get_workflow_handle(call.workflow_id, run_id=run_id)
    return await handle.describe(rpc_timeout=call.rpc_timeout)


async def _start(call: Call, **changes: Any) -> WorkflowHandle[Any, Any]:
    exposure, owner_attribute = call.exposure, call.services.owner_attribute
    values = {**exposure.start_options, **call.start_values, **changes}
    if call.keyed is not None and "start_signal" not in changes:
        values["memo"] = {**values.get("memo", {}), MARK: call.keyed.mark}
    attributes = values.get("search_attributes")
    if exposure.owner is not None:
        if any(pair.key.name == owner_attribute for pair in attributes or ()):
            raise TemporalSettingsError(
                f"expose(search_attributes=…) sets {owner_attribute}, which owner= sets by itself"
            )
        if call.access.owner is not None:
            attributes = owned_by(call.access.owner, attributes, attribute=owner_attribute)
    try:
        return await call.client.start_workflow(
            exposure.workflow_type,
            args=exposure.run.spread(call.start_input),
            id=call.workflow_id,
            task_queue=call.task_queue,
            result_type=exposure.run.result,
            rpc_timeout=call.rpc_timeout,
            **{**values, "search_attributes": attributes},
        )
    except RPCError as error:
        is_invalid = error.status is RPCStatusCode.INVALID_ARGUMENT and "attribute" in error.message.lower()
        if attributes is None or not is_invalid:
            raise
        message = "%s was not started: %s. Check its search_attributes=; to register them, %s"
        logger.error(message, exposure.workflow_type, error.message, REGISTER_COMMANDS)
        raise internal_error() from error


async def signal_with_start(call: Call) -> GatewayResponse:
    keyed, signal, latest = call.keyed, call.handler, None
    try:
        latest = await _describe(call, None)
        _check_signal(call, latest)
    except RPCError as error:
        if to_problem(error).status is not HTTPStatus.NOT_FOUND:
            raise
    is_replay = False
    if keyed is not None and latest is not None and not is_open(latest.status):
        # The server does not store the signals of a closed run, so it would start another one.
        is_replay = await find_repetition(call.history(latest.run_id), keyed)
    if not is_replay:
        with one_request(call.client, keyed):
            handle = await _start(
                call,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                start_signal=signal.name,
                start_signal_args=signal.spread(call.value.signal),
            )
        run_id = handle.result_run_id or ""
        if latest is None or run_id != latest.run_id:
            _check_signal(call, await _describe(call, run_id))
        is_replay = keyed is not None and await is_repetition(call.history(run_id), keyed)
    accepted = Accepted(workflow_id=call.workflow_id, links=Links.of(call.location))
    return answer(accepted, HTTPStatus.ACCEPTED, is_replay=is_replay, location=call.location)


def _check_signal(call: Call, latest: WorkflowExecutionDescription) -> None:
    """Raises a problem if the signal would reach a workflow of another type or owner."""
    is_other_type = is_open(latest.status) and latest.workflow_type != call.exposure.workflow_type
    if is_other_type or not call.reaches(latest):
        raise already_started(call.workflow_id)


_PERFORM: Mapping[Operation, Callable[[Call], Awaitable[GatewayResponse]]] = {
    Operation.START: start,
    Operation.SIGNAL_WITH_START: signal_with_start,
    Operation.LIST: lists.list_workflows,
    Operation.DESCRIBE: lists.describe,
    Operation.RESULT: runs.result,
    Operation.SIGNAL: actions.signal,
    Operation.QUERY: actions.query,
    Operation.UPDATE: actions.update,
    Operation.CANCEL: actions.cancel,
    Operation.TERMINATE: actions.terminate,
    Operation.RESET: actions.reset,
    Operation.PAUSE: functools.partial(actions.set_paused, is_paused=True),
    Operation.RESUME: functools.partial(actions.set_paused, is_paused=False),
    Operation.HISTORY: events.history,
    Operation.RAW_HISTORY: events.raw_history,
    Operation.EVENTS: events.events,
}
"""The function of each operation. The client is connected, and the workflow in the URL is described and checked."""
