"""Which workflows a web app's users may reach, and how: declared by the app, closed by default."""

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

from durably.temporal.compat import HandlerKind, handler_name
from durably.temporal.errors import TemporalSettingsError

from .attributes import Given, Make, declare_attributes
from .definitions import Handler, WorkflowDefinition, define
from .inputs import Arguments, IdTemplate, batch_model, id_function, model_with_start, takes_principal
from .models import BatchRequest
from .ownership import Ownership, declare_ownership
from .problems import logger
from .start_options import check_attach, delay_function, memo_function

Everything = Literal["all"]


class Operation(StrEnum):
    """What can be done with a workflow, and with a schedule."""

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
"""What ``expose_schedules`` opens unless told otherwise."""

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
"""What is open unless said otherwise. Of signals, queries and updates only those that are named."""

FOR_OWNERS = FOR_USERS | {Operation.LIST}
"""What is open unless said otherwise where ``owner=`` is given: lists show each principal its own workflows."""

FOR_OPERATORS = frozenset(Operation) - FOR_SCHEDULE_OPERATORS
"""All operations of workflows: also list and history, which show others' workflows, raw history, which shows what
went in and out of them, terminate and reset, which break them off, pause and resume, and batches, which act on many
workflows at once."""


@dataclass(frozen=True)
class HandlerExposure:
    """A signal, query or update that is open. ``with_start`` and ``batch``, of signals only, are the bodies of
    signal-with-start and of a batch."""

    handler: Handler
    arguments: Arguments
    with_start: type[BaseModel] | None = None
    batch: type[BaseModel] | None = None

    @property
    def name(self) -> str:
        return self.handler.name


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """A workflow that is open; made by ``expose``. ``name`` is its place in URLs.

    ``id`` gives a workflow's id from input, principal and owner. ``search_attributes``, ``memo`` and ``start_delay``
    are made from input and principal. ``attaches``: a start answers with the workflow that already runs with the id.
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
    search_attributes: Make | None = None
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
    search_attributes: Given | None = None,
    memo: Callable[..., Mapping[str, Any]] | None = None,
    start_delay: timedelta | Callable[..., timedelta] | None = None,
    attach: bool = False,
) -> Exposure:
    """Open a workflow to the gateway's clients.

    ``name`` is its place in URLs (by default the workflow's name in kebab case). ``id`` is a template over the input's
    fields, such as ``order-{order_id}``, in which ``{principal}`` stands for the owner's text, or a function of the
    input and the principal; without one, ids are made up. ``input`` is a pydantic model, stricter than the
    workflow's own type hints. ``signals``, ``queries`` and ``updates`` are methods of the workflow, their names, or
    ``"all"``; none are open unless named. ``operations`` are those of ``FOR_USERS`` (the default), ``FOR_OWNERS``
    (the default with ``owner``), ``FOR_OPERATORS``, or any set. ``owner`` is a function of the principal that gives
    the owner of what it starts: a text, or ``None`` for nobody (401). Others than the owner get 404; a principal for
    which ``staff`` returns ``True`` reaches everything.
    ``search_attributes`` are functions by ``SearchAttributeKey``, or one that makes them all; the former are looked for
    in the namespace when the process connects, and the log says what is not registered. They and ``memo`` are
    functions of the validated input, or of that and the principal.
    ``start_delay`` is how long the server waits before the workflow begins, or such a function. With ``attach`` (the
    same as ``id_conflict_policy=USE_EXISTING``) a start whose id already runs is answered with that workflow and
    ``"attached": true`` instead of 409; its own input is dropped. A workflow of another type or another owner is never
    attached to. The rest is what ``temporalio.client.Client.start_workflow`` takes.

    Raises ``TemporalSettingsError``.
    """
    definition = define(workflow)
    ownership = declare_ownership(owner, staff, definition.name)
    if operations is None:
        operations = FOR_USERS if ownership is None else FOR_OWNERS
    place = check_place(_kebab(definition.name) if name is None else name)
    title = type_name(place)
    arguments = Arguments(f"{title}Input", definition.run, input)
    attaches = check_attach(attach, id, id_conflict_policy, definition.name)
    options = {
        "id_reuse_policy": id_reuse_policy,
        # The server would attach to a workflow of any type and owner, so the gateway does it.
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


def check_place(name: str) -> str:
    """A name that can stand in a URL. Raises ``TemporalSettingsError``."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.~-]*", name):
        raise TemporalSettingsError(f'"{name}" is no name for a place in a URL: letters, digits, - and _')
    return name


def check_operations(
    operations: Iterable[Operation | str], allowed: frozenset[Operation], where: str
) -> frozenset[Operation]:
    """Raises ``TemporalSettingsError`` for an operation that ``where`` cannot open."""
    given = [operations] if isinstance(operations, str) else operations
    names = frozenset(str(operation) for operation in given)
    if others := sorted(names - allowed):
        raise TemporalSettingsError(f"{others[0]} is no operation of {where}; it takes {', '.join(sorted(allowed))}")
    return frozenset(Operation(name) for name in names)


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
    """Whether two owners can ask for the same workflow id."""
    if id is None:
        return False
    return not (IdTemplate(id).has_principal if isinstance(id, str) else takes_principal(id))


def _warn_of_shared_ids(title: str) -> None:
    """The server has no signal-with-start that refuses a workflow that runs, so that only the id can prevent this.

    Not in the workflow sandbox, which imports an app of one file again for each run of a workflow.
    """
    if workflow_api.unsafe.in_sandbox():
        return
    logger.warning(
        "%s is exposed with owner= and signal-with-start, and its id= does not contain the owner: if two users send "
        "the same new id at the same moment, the signal of one reaches the workflow of the other. Put {principal} into "
        "id=, let id= be a function of the input and the principal, or leave out Operation.SIGNAL_WITH_START",
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
        raise TemporalSettingsError(f'{kind} handlers are given as a list, or as "all", and not as "{chosen}"')
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
        raise TemporalSettingsError(f"{getattr(item, '__qualname__', item)} is no {kind} with a name")
    return name


def _field_names(arguments: Arguments) -> set[str]:
    fields = getattr(arguments.type, "model_fields", None) or getattr(arguments.type, "__dataclass_fields__", None)
    return set(fields or getattr(arguments.type, "__annotations__", {}))


def _kebab(name: str) -> str:
    name = name.removesuffix("Workflow") or name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "-", name).strip("-").lower()


def type_name(name: str) -> str:
    """An exposure's or a handler's name as a part of type names in documents: ``SumOfPair`` for ``sum-of-pair``."""
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", name))
