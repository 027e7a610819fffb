"""The private and undocumented parts of ``temporalio`` that Durably uses.

They were read from version 1.35.0, and ``tests/temporal/test_compat.py`` checks each against the installed version. If
a part has changed, ``TemporalVersionError`` names the part and the installed version. No other module may use a private
name of ``temporalio``; ``tests/test_imports.py`` checks that.
"""

import ctypes
import importlib.metadata
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, Literal, Protocol

from temporalio import activity, workflow
from temporalio.api.common.v1 import Payload
from temporalio.api.workflowservice.v1 import UpdateWorkflowExecutionRequest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError
from temporalio.worker import Worker, WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner

from .errors import TemporalVersionError

READ_FROM = "1.35.0"
"""The version of ``temporalio`` from which the private parts were read."""

HandlerKind = Literal["signal", "query", "update"]

_logger = logging.getLogger("durably.temporal")


@contextmanager
def _private(part: str) -> Iterator[None]:
    """A context for code that uses a private ``part``.

    Raises ``TemporalVersionError`` if the part is not as expected.
    """
    try:
        yield
    except (AttributeError, TypeError, ValueError) as error:
        raise _does_not_fit(part, str(error)) from error


def _does_not_fit(part: str, reason: str) -> TemporalVersionError:
    installed = importlib.metadata.version("temporalio")
    return TemporalVersionError(
        f"temporalio {installed} does not fit this version of Durably: {part} is not as in {READ_FROM} ({reason}). "
        f'Upgrade Durably, or install "temporalio=={READ_FROM}"'
    )


# Definitions. ``temporalio`` has no public way to read the arguments of decorators of a class or function. Its workers
# and clients read ``_Definition``.


@dataclass(frozen=True)
class HandlerDefinition:
    """A named signal, query or update handler.

    ``description`` is the one given to its decorator.
    """

    name: str
    function: Callable[..., Any]
    description: str | None


@dataclass(frozen=True)
class WorkflowParts:
    """The definition of a workflow class. ``name`` is ``None`` for a dynamic workflow.

    Handlers are by name, without dynamic handlers and the built-in ones of ``temporalio``.
    """

    name: str | None
    cls: type
    run: Callable[..., Any]
    signals: Mapping[str, HandlerDefinition]
    queries: Mapping[str, HandlerDefinition]
    updates: Mapping[str, HandlerDefinition]


def workflow_parts(defined: type | Callable[..., Any]) -> WorkflowParts | None:
    """The definition of a workflow class, or of the class with that run method.

    Returns ``None`` for anything else. Raises ``TemporalVersionError``.
    """
    with _private("temporalio.workflow._Definition"):
        kind = workflow._Definition
        found = kind.from_class(defined) if isinstance(defined, type) else kind.from_run_fn(defined)
        if found is None:
            return None
        return WorkflowParts(
            name=found.name,
            cls=found.cls,
            run=found.run_fn,
            signals=_named(found.signals),
            queries=_named(found.queries),
            updates=_named(found.updates),
        )


def _named(definitions: Mapping[str | None, Any]) -> dict[str, HandlerDefinition]:
    return {
        name: HandlerDefinition(name, definition.fn, definition.description)
        for name, definition in definitions.items()
        if name is not None and not name.startswith("__")
    }


_HANDLER_ATTRIBUTES: Mapping[HandlerKind, str] = {
    "signal": "__temporal_signal_definition",
    "query": "__temporal_query_definition",
    "update": "_defn",
}


def handler_name(kind: HandlerKind, method: Callable[..., Any]) -> str | None:
    """The name that a handler's decorator gave it.

    Returns ``None`` without a name, or for a handler of another kind. Raises ``TemporalVersionError``.
    """
    definition = getattr(method, _HANDLER_ATTRIBUTES[kind], None)
    if definition is None:
        return None
    with _private(f"{_HANDLER_ATTRIBUTES[kind]} of a {kind} handler"):
        name: str | None = definition.name
    return name


@dataclass(frozen=True)
class ActivityDefinition:
    """``name`` is ``None`` for a dynamic activity."""

    name: str | None


def activity_definition(function: Callable[..., Any]) -> ActivityDefinition | None:
    """The definition of an activity; ``None`` for any other callable.

    Raises ``TemporalVersionError``.
    """
    with _private("temporalio.activity._Definition"):
        found = activity._Definition.from_callable(function)
        return None if found is None else ActivityDefinition(found.name)


# The paused status. Servers have it, ``WorkflowExecutionStatus`` does not. If one workflow of a page is paused, the SDK
# fails to read the whole page. So the value is added to the enumeration, unless a later SDK has it.

_PAUSED_VALUE = 8
"""``WORKFLOW_EXECUTION_STATUS_PAUSED`` of the server's API."""


def _find_or_add_paused(statuses: type[WorkflowExecutionStatus]) -> WorkflowExecutionStatus:
    known = next((status for status in statuses if status == _PAUSED_VALUE), None)
    if known is not None:
        return known
    with _private("the enumeration temporalio.client.WorkflowExecutionStatus"):
        paused = int.__new__(statuses, _PAUSED_VALUE)
        paused._name_, paused._value_ = "PAUSED", _PAUSED_VALUE

        def missing(kind: object, value: object) -> WorkflowExecutionStatus | None:
            return paused if value == _PAUSED_VALUE else None

        statuses._missing_ = classmethod(missing)  # type: ignore[assignment]
        return statuses(_PAUSED_VALUE)


PAUSED = _find_or_add_paused(WorkflowExecutionStatus)


# Request ids. The server executes a request once, by its id. ``Client`` generates request ids and accepts none, so the
# raw service methods are wrapped: the requests have a field for the id. An update's id is an argument of the client's
# method. Headers are set for all of them, without an interceptor that an app's own client may lack.

_IDENTIFIED_CALLS = (
    "start_workflow_execution",
    "signal_with_start_workflow_execution",
    "signal_workflow_execution",
    "update_workflow_execution",
)


class _ChosenId:
    def __init__(self, id: str, headers: Mapping[str, Payload]) -> None:
        self.id = id
        self.headers = headers
        self.was_sent = False

    def put_into(self, request: Any) -> None:
        if isinstance(request, UpdateWorkflowExecutionRequest):
            header = request.request.input.header
        else:
            request.request_id, header = self.id, request.header
        for name, payload in self.headers.items():
            header.fields[name].CopyFrom(payload)
        self.was_sent = True


_chosen_id: ContextVar[_ChosenId | None] = ContextVar("durably_request_id", default=None)


@contextmanager
def request_id(client: Client, id: str, headers: Mapping[str, Payload] = MappingProxyType({})) -> Iterator[None]:
    """Give ``id`` to the starts and signals that ``client`` sends in this context.

    ``headers`` are added to them and to updates. Raises ``TemporalVersionError``.
    """
    _wrap_service(client)
    chosen = _ChosenId(id, headers)
    token = _chosen_id.set(chosen)
    try:
        yield
    finally:
        _chosen_id.reset(token)
    if not chosen.was_sent:
        # The call has been made, so an exception would be wrong. But its repetition will not be recognised.
        problem = _does_not_fit("how Client calls workflow_service", "the request's id was not sent")
        _logger.error("an idempotency key had no effect: %s", problem.message)


def _wrap_service(client: Client) -> None:
    service = client.workflow_service
    for name in _IDENTIFIED_CALLS:
        with _private(f"Client.workflow_service.{name}"):
            call = getattr(service, name)
            if not isinstance(call, _IdentifiedCall):
                setattr(service, name, _IdentifiedCall(name, call))


class _IdentifiedCall:
    """A method of the raw service whose requests get the id chosen in this context."""

    def __init__(self, name: str, call: Callable[..., Awaitable[Any]]) -> None:
        self._name = name
        self._call = call

    def __call__(self, request: Any, **options: Any) -> Awaitable[Any]:
        if (chosen := _chosen_id.get()) is not None:
            with _private(f"the request of {self._name}"):
                chosen.put_into(request)
        return self._call(request, **options)


# Native objects after a fork. A runtime's threads do not exist in a forked child. Freeing a runtime, client or call of
# the parent waits for these threads forever, at the latest when the child exits. ``temporalio`` only documents that
# runtimes do not work across forks. A module global does not help: the interpreter's shutdown clears it.


def never_free(native: object) -> None:
    """Keep an object that the parent's runtime owns.

    The interpreter's shutdown does not free it either.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(native))


# Workers that never ran. The client reserves the task queue of a worker until the worker stops. A worker whose server
# did not answer at its start never stops, so the client could not make another worker for the task queue.


def release_task_queue(worker: Worker) -> None:
    """Free the task queue of a worker that never ran.

    Does nothing if the worker ran.
    """
    with _private("Worker._bridge_worker"):
        if not worker._started:
            worker._bridge_worker.initiate_shutdown()


# Messages of the native client, which are more exact than its statuses and are not documented. If they change, users
# only get a less exact message.

_BROKEN_CONNECTION = re.compile(r"transport error|h2 protocol error|http2 error|operation was canceled")


def says_connection_broke(error: RPCError) -> bool:
    """Whether the native client reports that the connection ended during a call.

    It does so under several statuses.
    """
    return _BROKEN_CONNECTION.match(error.message) is not None


def connect_failure(error: Exception) -> str:
    """The innermost message of the error that a failed ``Client.connect`` raises."""
    messages = re.findall(r'message: "([^"]*)"', str(error))
    return messages[-1] if messages else str(error)


# Replays. A ``Replayer`` reports errors in the native core's words.

_FAILURE_MESSAGE = re.compile(r'message: "((?:[^"\\]|\\.)*)"')


def replay_error(error: Exception) -> str:
    """The core's message in the error of a failed replay."""
    found = _FAILURE_MESSAGE.search(str(error))
    return found[1].replace('\\"', '"').replace("\\'", "'") if found else str(error)


# Evictions. A worker keeps workflows in its memory. Only the reason of an eviction shows whether the server has
# accepted a workflow's end. A worker does not limit the memory, so evictions are requested.


class Eviction(Enum):
    """The reason for which the runtime removes a workflow from a worker's memory."""

    ENDED = "the server has accepted the workflow's end"
    REFUSED = "the server has refused a task, because an event came during it: the task is executed again"
    OTHER = "the memory is full, for example, or the task is another worker's"


class CacheObserver(Protocol):
    """Observes the workflows in a worker's memory, in threads of the worker."""

    def note_activated(self, info: workflow.Info) -> None: ...

    def note_evicted(self, info: workflow.Info, eviction: Eviction) -> None: ...


class ObservedRunner(WorkflowRunner):
    """Runs workflows by another runner, and reports activations and evictions."""

    def __init__(self, runner: WorkflowRunner, observer: CacheObserver) -> None:
        self._runner, self._observer = runner, observer

    def prepare_workflow(self, defn: Any) -> None:
        self._runner.prepare_workflow(defn)

    def set_worker_level_failure_exception_types(self, types: Any) -> None:
        self._runner.set_worker_level_failure_exception_types(types)

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        instance: Any = _ObservedInstance(self._runner.create_instance(det), det.info, self._observer)
        return instance  # type: ignore[no-any-return]


class _ObservedInstance:
    def __init__(self, instance: WorkflowInstance, info: workflow.Info, observer: CacheObserver) -> None:
        self._instance = instance
        self._info = info
        self._observer = observer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._instance, name)

    def activate(self, act: Any) -> Any:
        completion = self._instance.activate(act)
        with _private("the eviction of a workflow"):
            job = next((each.remove_from_cache for each in act.jobs if each.HasField("remove_from_cache")), None)
            reason = None if job is None else job.EvictionReason.Name(job.reason)
        if reason is None:
            self._observer.note_activated(self._info)
        else:
            self._observer.note_evicted(self._info, _EVICTIONS.get(reason, Eviction.OTHER))
        return completion


_EVICTIONS = {"WORKFLOW_EXECUTION_ENDING": Eviction.ENDED, "UNHANDLED_COMMAND": Eviction.REFUSED}


def evict(worker: Worker, run_id: str) -> None:
    """Remove a workflow from the memory of a worker once it has no task.

    Its next task reads its history. Does nothing if the worker does not have the workflow, or has ended.
    """
    with _private("Worker._bridge_worker.request_workflow_eviction"):
        if worker._bridge_worker._ref is not None:
            worker._bridge_worker.request_workflow_eviction(run_id)
