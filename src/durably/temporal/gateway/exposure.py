"""``expose`` opens a workflow, ``expose_schedules`` declared schedules."""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel
from temporalio import workflow as workflow_api
from temporalio.common import (
    Priority,
    RetryPolicy,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)

from durably.execution.step import is_async
from durably.temporal.client.connection import Temporal
from durably.temporal.compat import HandlerKind, handler_name
from durably.temporal.declarations import ScheduleDeclaration
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.namespace.schedules import declared_schedules

from .handlers import Arguments, Handler, WorkflowDefinition, batch_model, define, model_with_start
from .models import BatchRequest
from .problems import Problem, logger
from .start_options import (
    GivenAttributes,
    IdTemplate,
    MakeAttributes,
    check_attach,
    check_id,
    declare_attributes,
    delay_function,
    id_function,
    memo_function,
    takes_principal,
)

Everything = Literal["all"]


class Operation(StrEnum):
    """An operation on a workflow or a schedule."""

    START = "start"
    LIST = "list"
    DESCRIBE = "describe"
    RESULT = "result"
    EVENTS = "events"
    HISTORY = "history"
    RAW_HISTORY = "raw_history"
    SIGNAL = "signal"
    QUERY = "query"
    UPDATE = "update"
    SIGNAL_WITH_START = "signal_with_start"
    CANCEL = "cancel"
    TERMINATE = "terminate"
    RESET = "reset"
    PAUSE = "pause"
    RESUME = "resume"
    BATCH_CANCEL = "batch_cancel"
    BATCH_TERMINATE = "batch_terminate"
    BATCH_SIGNAL = "batch_signal"
    BATCH_STATUS = "batch_status"
    LIST_SCHEDULES = "list_schedules"
    DESCRIBE_SCHEDULE = "describe_schedule"
    PAUSE_SCHEDULE = "pause_schedule"
    RESUME_SCHEDULE = "resume_schedule"
    TRIGGER_SCHEDULE = "trigger_schedule"
    BACKFILL_SCHEDULE = "backfill_schedule"


FOR_SCHEDULE_READERS = frozenset({Operation.LIST_SCHEDULES, Operation.DESCRIBE_SCHEDULE})
"""The default of ``expose_schedules``."""

FOR_SCHEDULE_OPERATORS = FOR_SCHEDULE_READERS | {
    Operation.PAUSE_SCHEDULE,
    Operation.RESUME_SCHEDULE,
    Operation.TRIGGER_SCHEDULE,
    Operation.BACKFILL_SCHEDULE,
}
"""All operations of schedules."""

FOR_USERS = frozenset(
    {
        Operation.START,
        Operation.DESCRIBE,
        Operation.RESULT,
        Operation.EVENTS,
        Operation.SIGNAL,
        Operation.QUERY,
        Operation.UPDATE,
        Operation.CANCEL,
    }
)
"""The default of ``expose``. Signals, queries and updates must also be named."""

FOR_OWNERS = FOR_USERS | {Operation.LIST}
"""The default of ``expose`` with ``owner=``: lists show each principal its own workflows."""

FOR_OPERATORS = frozenset(Operation) - FOR_SCHEDULE_OPERATORS
"""All operations of workflows.

In addition to users' operations: list and history show others' workflows; raw history shows inputs and results;
terminate and reset end a run immediately; pause and resume; batches act on many workflows.
"""


@dataclass(frozen=True)
class Ownership:
    """``owner=`` and ``staff=`` of ``expose``: functions of the principal."""

    owner: Callable[[Any], str | None]
    staff: Callable[[Any], bool] | None = None


@dataclass(frozen=True)
class HandlerExposure:
    """An open signal, query or update.

    Signals have two more bodies: ``with_start`` of signal-with-start, and ``batch`` of a batch of signals.
    """

    handler: Handler
    arguments: Arguments
    with_start: type[BaseModel] | None = None
    batch: type[BaseModel] | None = None

    @property
    def name(self) -> str:
        return self.handler.name


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """An open workflow, made by ``expose``. ``name`` is the first segment of its URLs.

    ``id`` is a function of input, principal and owner. ``search_attributes``, ``memo`` and ``start_delay`` are
    functions of input and principal. With ``attaches``, a start whose id is in use returns the running workflow.
    """

    name: str
    definition: WorkflowDefinition
    arguments: Arguments
    id: Callable[[Any, Any, str | None], str] | None
    operations: frozenset[Operation]
    signals: Mapping[str, HandlerExposure]
    queries: Mapping[str, HandlerExposure]
    updates: Mapping[str, HandlerExposure]
    task_queue: str | None
    start_options: Mapping[str, Any] = field(default_factory=dict)
    search_attributes: MakeAttributes | None = None
    memo: Callable[[Any, Any], Mapping[str, Any]] | None = None
    start_delay: Callable[[Any, Any], timedelta] | None = None
    attaches: bool = False
    ownership: Ownership | None = None

    @property
    def result(self) -> Any:
        return self.definition.run.result


def expose(
    workflow: type | Callable[..., Any],
    *,
    name: str | None = None,
    id: str | Callable[..., str] | None = None,
    input: Any = None,
    task_queue: str | None = None,
    signals: Iterable[Callable[..., Any] | str] | Everything = (),
    queries: Iterable[Callable[..., Any] | str] | Everything = (),
    updates: Iterable[Callable[..., Any] | str] | Everything = (),
    operations: Iterable[Operation | str] | None = None,
    owner: Callable[[Any], str | None] | None = None,
    staff: Callable[[Any], bool] | None = None,
    id_reuse_policy: WorkflowIDReusePolicy = WorkflowIDReusePolicy.ALLOW_DUPLICATE,
    id_conflict_policy: WorkflowIDConflictPolicy = WorkflowIDConflictPolicy.FAIL,
    execution_timeout: timedelta | None = None,
    run_timeout: timedelta | None = None,
    task_timeout: timedelta | None = None,
    retry_policy: RetryPolicy | None = None,
    priority: Priority | None = None,
    search_attributes: GivenAttributes | None = None,
    memo: Callable[..., Mapping[str, Any]] | None = None,
    start_delay: timedelta | Callable[..., timedelta] | None = None,
    attach: bool = False,
) -> Exposure:
    """Open a workflow to the gateway's clients.

    - ``name``: the first segment of its URLs, by default the workflow's name in kebab case.
    - ``id``: a template over the fields of the input, such as ``order-{order_id}``, with ``{principal}`` for the owner;
      or a function of the input and the principal. By default ids are random.
    - ``input``: a pydantic model that is stricter than the workflow's own type hints.
    - ``signals``, ``queries``, ``updates``: methods of the workflow, their names, or ``"all"``. None are open by
      default.
    - ``operations``: ``FOR_USERS`` (the default), ``FOR_OWNERS`` (the default with ``owner``), ``FOR_OPERATORS``, or
      any set.
    - ``owner``: a function of the principal. It returns the owner of a workflow that the principal starts: a string, or
      ``None`` for a principal that is not a user (401). Other principals get 404.
    - ``staff``: a function of the principal. If it returns ``True``, the principal can reach all workflows.
    - ``search_attributes``: a mapping of ``SearchAttributeKey`` to functions, or one function that makes all. The keys
      of a mapping are checked when the process connects; the log names unregistered ones. These functions and ``memo``
      take the validated input, or the input and the principal.
    - ``start_delay``: such a function or a ``timedelta``. The server starts the workflow after it.
    - ``attach`` (the same as ``id_conflict_policy=USE_EXISTING``): a start whose id is in use returns the running
      workflow with ``"attached": true`` instead of 409. Its own input is dropped. A workflow of another type or owner
      is never returned.

    The other parameters are those of ``temporalio.client.Client.start_workflow``.

    Raises ``TemporalSettingsError``.
    """
    definition = define(workflow)
    ownership = _ownership(owner, staff, definition.name)
    if operations is None:
        operations = FOR_USERS if ownership is None else FOR_OWNERS
    place = check_place(_kebab(definition.name) if name is None else name)
    title = type_name(place)
    arguments = Arguments(f"{title}Input", definition.run, input)
    attaches = check_attach(attach, id, id_conflict_policy, definition.name)
    options = {
        "id_reuse_policy": id_reuse_policy,
        # The server would attach to a workflow of any type and owner. The gateway checks both.
        "id_conflict_policy": WorkflowIDConflictPolicy.FAIL if attaches else id_conflict_policy,
        "execution_timeout": execution_timeout,
        "run_timeout": run_timeout,
        "task_timeout": task_timeout,
        "retry_policy": retry_policy,
        **({"priority": priority} if priority is not None else {}),
    }
    chosen = check_operations(operations, FOR_OPERATORS, "expose(), which opens workflows")
    exposed_signals = _chosen(title, definition, "signal", definition.signals, signals)
    if ownership is not None and exposed_signals and Operation.SIGNAL_WITH_START in chosen and _is_id_shared(id):
        _warn_of_shared_ids(definition.name)
    return Exposure(
        name=place,
        definition=definition,
        arguments=arguments,
        id=_id(id, arguments, definition.name, has_owner=ownership is not None),
        operations=chosen,
        signals=_with_bodies(title, arguments, exposed_signals),
        queries=_chosen(title, definition, "query", definition.queries, queries),
        updates=_chosen(title, definition, "update", definition.updates, updates),
        task_queue=task_queue,
        start_options=options,
        search_attributes=declare_attributes(search_attributes, definition.name),
        memo=None if memo is None else memo_function(memo, definition.name),
        start_delay=None if start_delay is None else delay_function(start_delay),
        attaches=attaches,
        ownership=ownership,
    )


def _ownership(owner: Any, staff: Any, title: str) -> Ownership | None:
    """Raises ``TemporalSettingsError``."""
    if owner is None:
        if staff is not None:
            raise TemporalSettingsError(f"{title} has staff= without owner=: give owner= too, or leave staff= out")
        return None
    for name, function in (("owner", owner), ("staff", staff)):
        if function is None and name == "staff":
            continue
        if not callable(function) or is_async(function):
            raise TemporalSettingsError(
                f"{name}= of {title} is a plain function of the principal, without await and without a database: put "
                "what it needs into the principal"
            )
    return Ownership(owner, staff)


def _id(
    id: str | Callable[..., str] | None, arguments: Arguments, title: str, *, has_owner: bool
) -> Callable[[Any, Any, str | None], str] | None:
    if id is None:
        return None
    if not isinstance(id, str):
        return id_function(id)
    template = IdTemplate(id)
    template.check(_field_names(arguments), f"the input of {title}", has_owner=has_owner)
    return template.fill


def _is_id_shared(id: str | Callable[..., str] | None) -> bool:
    """Whether two owners can choose the same workflow id."""
    if id is None:
        return False
    return not (IdTemplate(id).has_principal if isinstance(id, str) else takes_principal(id))


def _warn_of_shared_ids(title: str) -> None:
    """Warn of ids without the owner. The server cannot refuse a signal-with-start."""
    if workflow_api.unsafe.in_sandbox():
        return  # The sandbox imports a single-file app again for each run of a workflow.
    logger.warning(
        "%s is exposed with owner= and signal-with-start, and its id= does not contain the owner: if two users send "
        "the same new id at the same time, the signal of one reaches the workflow of the other. Put {principal} into "
        "id=, give id= as a function of the input and the principal, or leave out Operation.SIGNAL_WITH_START",
        title,
    )


def _chosen(
    title: str,
    definition: WorkflowDefinition,
    kind: HandlerKind,
    handlers: Mapping[str, Handler],
    chosen: Iterable[Callable[..., Any] | str] | Everything,
) -> dict[str, HandlerExposure]:
    if isinstance(chosen, str) and chosen != "all":
        raise TemporalSettingsError(f'{kind} handlers are given as a list, or as "all", not as "{chosen}"')
    names: Sequence[str] = list(handlers) if chosen == "all" else [_handler_name(kind, item) for item in chosen]
    exposed = {}
    for name in names:
        if name not in handlers:
            known = ", ".join(handlers) or "none"
            raise TemporalSettingsError(f'{definition.name} has no {kind} "{name}"; it has {known}')
        exposed[name] = HandlerExposure(handlers[name], Arguments(f"{title}{type_name(name)}Input", handlers[name]))
    return exposed


def _with_bodies(title: str, start: Arguments, signals: Mapping[str, HandlerExposure]) -> dict[str, HandlerExposure]:
    return {
        name: replace(
            signal,
            with_start=model_with_start(f"{title}And{type_name(name)}Input", start, signal.arguments),
            batch=batch_model(f"{title}Batch{type_name(name)}Input", BatchRequest, signal.arguments),
        )
        for name, signal in signals.items()
    }


def _handler_name(kind: HandlerKind, item: Callable[..., Any] | str) -> str:
    if isinstance(item, str):
        return item
    if (name := handler_name(kind, item)) is None:
        raise TemporalSettingsError(f"{getattr(item, '__qualname__', item)} is not a named {kind} handler")
    return name


def _field_names(arguments: Arguments) -> set[str]:
    fields = getattr(arguments.type, "model_fields", None) or getattr(arguments.type, "__dataclass_fields__", None)
    return set(fields or getattr(arguments.type, "__annotations__", {}))


def _kebab(name: str) -> str:
    name = name.removesuffix("Workflow") or name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "-", name).strip("-").lower()


def type_name(name: str) -> str:
    """A name as a part of the names of types: ``SumOfPair`` for ``sum-of-pair``."""
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", name))


@dataclass(frozen=True, kw_only=True)
class ScheduleExposure:
    """Open schedules. ``name`` is the first segment of their URLs.

    ``ids`` is ``None`` for all declared schedules. ``app`` is the one of ``sync-schedules --app``.
    """

    name: str
    ids: frozenset[str] | None
    operations: frozenset[Operation]
    app: str | None

    def declared(self, temporal: Temporal) -> Mapping[str, ScheduleDeclaration]:
        """The open schedules by id, in the order of their declaration.

        Invalid schedules are left out; each error is logged once in a process. Raises ``TemporalSettingsError`` for an
        id that is declared twice.
        """
        declared = declared_schedules(temporal)
        opened = dict.fromkeys(declared if self.ids is None else [id for id in declared if id in self.ids])
        errors = {
            id: self._error_of(id, declared) for id in [*opened, *sorted((self.ids or frozenset()) - opened.keys())]
        }
        for error in filter(None, errors.values()):
            _log_error(error)
        return {id: declared[id] for id in opened if errors[id] is None}

    def check(self, temporal: Temporal, id: str) -> None:
        """Raises ``TemporalSettingsError`` for an invalid open schedule."""
        declared = declared_schedules(temporal)
        is_open = id in declared if self.ids is None else id in self.ids
        if is_open and (error := self._error_of(id, declared)) is not None:
            raise TemporalSettingsError(error)

    def _error_of(self, id: str, declared: Mapping[str, ScheduleDeclaration]) -> str | None:
        if id in declared:
            return _url_error(id)
        return (
            f'expose_schedules() names the schedule "{id}", which this process does not declare: import the module '
            "that calls add_schedule(), or remove the id"
        )


@functools.cache
def _log_error(error: str) -> None:
    logger.error("%s", error)


AnyExposure = Exposure | ScheduleExposure


def expose_schedules(
    *ids: str,
    name: str = "schedules",
    operations: Iterable[Operation | str] = FOR_SCHEDULE_READERS,
    app: str | None = None,
) -> ScheduleExposure:
    """Open schedules of ``Temporal.add_schedule``, for ``Gateway(schedules=…)``.

    - ``ids``: the open schedules; by default all are open.
    - ``name``: the first segment of their URLs.
    - ``operations``: ``FOR_SCHEDULE_READERS`` (list and describe, the default), ``FOR_SCHEDULE_OPERATORS`` (also pause,
      resume, trigger and backfill), or any set.
    - ``app``: the ``--app`` of ``sync-schedules``, if it has one. Schedules of other apps are not open.

    Schedules have no owners: only ``authorize`` decides. Raises ``TemporalSettingsError``.
    """
    for id in ids:
        if not isinstance(id, str):
            raise TemporalSettingsError(f'expose_schedules("nightly", "hourly") takes ids one by one, not {id!r}')
        if (error := _url_error(id)) is not None:
            raise TemporalSettingsError(error)
    return ScheduleExposure(
        name=check_place(name),
        ids=frozenset(ids) or None,
        operations=check_operations(operations, FOR_SCHEDULE_OPERATORS, "expose_schedules()"),
        app=app,
    )


def _url_error(id: str) -> str | None:
    """The reason why a schedule cannot have a URL, or ``None``."""
    try:
        check_id(id, "the id")
    except Problem as problem:
        return (
            f'the schedule "{id}" cannot be reached over HTTP: {problem.detail}. Rename it, or give '
            "expose_schedules() the ids of the others"
        )
    return None


def check_place(name: str) -> str:
    """Check a name that becomes a segment of a URL. Raises ``TemporalSettingsError``."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.~-]*", name):
        raise TemporalSettingsError(f'"{name}" cannot be a segment of a URL: letters, digits, - and _ can')
    return name


def check_operations(
    operations: Iterable[Operation | str], allowed: frozenset[Operation], where: str
) -> frozenset[Operation]:
    """Raises ``TemporalSettingsError`` for an operation that ``where`` cannot open."""
    given = [operations] if isinstance(operations, str) else operations
    names = frozenset(str(operation) for operation in given)
    if others := sorted(names - allowed):
        raise TemporalSettingsError(
            f"{others[0]} is not an operation of {where}; it takes {', '.join(sorted(allowed))}"
        )
    return frozenset(Operation(name) for name in names)
