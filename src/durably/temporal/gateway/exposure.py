"""``expose`` opens a workflow to a gateway's clients."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal

from temporalio import workflow as workflow_api
from temporalio.common import (
    Priority,
    RetryPolicy,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)

from durably.execution.step import is_async
from durably.temporal.compat import HandlerDefinition, HandlerKind, handler_name, workflow_parts
from durably.temporal.errors import TemporalSettingsError

from .inputs import Handler, IdTemplate, field_names, first_paragraph
from .problems import logger


class Operation(StrEnum):
    """An operation on workflows."""

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

FOR_OPERATORS = frozenset(Operation)
"""All operations.

In addition to users' operations: list and history show others' workflows; raw history shows inputs and results;
terminate and reset end a run immediately; pause and resume.
"""

OfInput = Callable[[Any, Any], Any]
"""A function of the validated input and the principal."""


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """An open workflow, made by ``expose``. ``name`` is the first segment of its URLs.

    ``id`` is a function of input, principal and owner. ``start_options`` are arguments of ``Client.start_workflow``,
    and ``start_values`` functions of input and principal for its memo, search attributes and delay. ``attribute_keys``
    are the search attributes that are declared by key. With ``attaches``, a start whose id is in use returns the
    running workflow. ``owner`` and ``staff`` are functions of the principal.
    """

    name: str
    workflow_type: str
    run: Handler
    doc: str
    operations: frozenset[Operation]
    signals: Mapping[str, Handler]
    queries: Mapping[str, Handler]
    updates: Mapping[str, Handler]
    id: Callable[[Any, Any, str | None], str] | None = None
    task_queue: str | None = None
    start_options: Mapping[str, Any] = field(default_factory=dict)
    start_values: Mapping[str, OfInput] = field(default_factory=dict)
    attribute_keys: tuple[SearchAttributeKey[Any], ...] = ()
    attaches: bool = False
    owner: Callable[[Any], str | None] | None = None
    staff: Callable[[Any], bool] | None = None


def expose(
    workflow: type | Callable[..., Any],
    *,
    name: str | None = None,
    id: str | Callable[..., str] | None = None,
    input: Any = None,
    task_queue: str | None = None,
    signals: Iterable[Callable[..., Any] | str] | Literal["all"] = (),
    queries: Iterable[Callable[..., Any] | str] | Literal["all"] = (),
    updates: Iterable[Callable[..., Any] | str] | Literal["all"] = (),
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
    search_attributes: Mapping[SearchAttributeKey[Any], Callable[..., Any]] | None = None,
    memo: Callable[..., Mapping[str, Any]] | None = None,
    start_delay: timedelta | Callable[..., timedelta] | None = None,
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
    - ``search_attributes``: a mapping of ``SearchAttributeKey`` to functions. The keys are checked when the process
      connects; the log names unregistered ones. Lists can be filtered by them. A function that returns ``None`` sets
      nothing: the workflow itself may set the attribute. These functions and ``memo`` take the validated input, or the
      input and the principal.
    - ``start_delay``: such a function or a ``timedelta``. The server starts the workflow after it.
    - ``id_conflict_policy=USE_EXISTING``: a start whose id is in use returns the running workflow with ``"attached":
      true`` instead of 409. Its own input is dropped. A workflow of another type or owner is never returned.

    The other parameters are those of ``temporalio.client.Client.start_workflow``.

    Raises ``TemporalSettingsError``.
    """
    parts = workflow_parts(workflow)
    shown = str(getattr(workflow, "__qualname__", workflow))
    if parts is None:
        raise TemporalSettingsError(f"{shown} is not a workflow: decorate its class with @workflow.defn")
    if parts.name is None:
        raise TemporalSettingsError(f"{shown} is a dynamic workflow, which has no name to be started by")
    place = name
    if place is None:
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "-", parts.name.removesuffix("Workflow") or parts.name)
        place = words.strip("-").lower()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.~-]*", place):
        raise TemporalSettingsError(f'"{place}" cannot be a segment of a URL: letters, digits, - and _ can')
    _check_ownership(parts.name, owner, staff)
    if operations is None:
        operations = FOR_USERS if owner is None else FOR_OWNERS
    for each in (operations := [operations] if isinstance(operations, str) else list(operations)):
        if each not in FOR_OPERATORS:
            raise TemporalSettingsError(f"{each} is not an operation; there are {', '.join(Operation)}")
    chosen = frozenset(map(Operation, operations))
    run = Handler(parts.name, parts.run, title=f"{type_name(place)}Input", model=input)
    open_signals = _chosen(place, parts.name, "signal", parts.signals, signals)
    if id is None or not isinstance(id, str):
        make_id, is_shared = None if id is None else _id_function(id), id is not None and len(_required(id)) != 2
    else:
        template = IdTemplate(id, field_names(run.body.type), f"the input of {parts.name}", has_owner=owner is not None)
        make_id, is_shared = template.fill, not template.has_principal
    if owner is not None and open_signals and Operation.SIGNAL_WITH_START in chosen and is_shared:
        _warn_of_shared_ids(parts.name)
    attaches = id_conflict_policy is WorkflowIDConflictPolicy.USE_EXISTING
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
    return Exposure(
        name=place,
        workflow_type=parts.name,
        run=run,
        doc=first_paragraph(parts.cls),
        operations=chosen,
        signals=open_signals,
        queries=_chosen(place, parts.name, "query", parts.queries, queries),
        updates=_chosen(place, parts.name, "update", parts.updates, updates),
        id=make_id,
        task_queue=task_queue,
        start_options=options,
        start_values=_start_values(parts.name, memo, search_attributes, start_delay),
        attribute_keys=tuple(search_attributes or ()),
        attaches=attaches,
        owner=owner,
        staff=staff,
    )


def _check_ownership(title: str, owner: Any, staff: Any) -> None:
    if owner is None and staff is not None:
        raise TemporalSettingsError(f"{title} has staff= without owner=: give owner= too, or leave staff= out")
    for name, function in (("owner", owner), ("staff", staff)):
        if function is not None and (not callable(function) or is_async(function)):
            raise TemporalSettingsError(
                f"{name}= of {title} is a plain function of the principal, without await and without a database: put "
                "what it needs into the principal"
            )


def _chosen(
    place: str,
    title: str,
    kind: HandlerKind,
    defined: Mapping[str, HandlerDefinition],
    chosen: Iterable[Callable[..., Any] | str] | Literal["all"],
) -> dict[str, Handler]:
    if isinstance(chosen, str) and chosen != "all":
        raise TemporalSettingsError(f'{kind} handlers are given as a list, or as "all", not as "{chosen}"')
    exposed = {}
    for each in defined if chosen == "all" else chosen:
        name = each if isinstance(each, str) else handler_name(kind, each)
        if name is None:
            raise TemporalSettingsError(f"{getattr(each, '__qualname__', each)} is not a named {kind} handler")
        if name not in defined:
            raise TemporalSettingsError(f'{title} has no {kind} "{name}"; it has {", ".join(defined) or "none"}')
        found = defined[name]
        body = f"{type_name(place)}{type_name(name)}Input"
        exposed[name] = Handler(name, found.function, title=body, doc=found.description)
    return exposed


def _warn_of_shared_ids(title: str) -> None:
    """Warn of ids that two owners can choose. The server cannot refuse a signal-with-start."""
    if workflow_api.unsafe.in_sandbox():
        return  # The sandbox imports a single-file app again for each run of a workflow.
    logger.warning(
        "%s is exposed with owner= and signal-with-start, and its id= does not contain the owner: if two users send "
        "the same new id at the same time, the signal of one reaches the workflow of the other. Put {principal} into "
        "id=, give id= as a function of the input and the principal, or leave out Operation.SIGNAL_WITH_START",
        title,
    )


def type_name(name: str) -> str:
    """A name as a part of the names of types: ``SumOfPair`` for ``sum-of-pair``."""
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", name))


# Values that a start derives from its input: functions of the input, or of the input and the principal


def _of_input(function: Callable[..., Any], what: str) -> OfInput:
    """A function of the input, or of both, as a function of both. Parameters with defaults are not counted.

    Raises ``TemporalSettingsError``.
    """
    required = _required(function)
    if len(required) not in (1, 2) or any(p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in required):
        raise TemporalSettingsError(
            f"{what} of expose() is a function of the input, or of the input and the principal: {function!r} takes "
            f"{', '.join(map(str, required)) or 'nothing'}"
        )
    if is_async(function):
        raise TemporalSettingsError(f"{what} of expose() is a plain function, not an asynchronous one")
    return function if len(required) == 2 else lambda value, principal: function(value)


def _required(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return [each for each in inspect.signature(function).parameters.values() if each.default is each.empty]
    except (TypeError, ValueError):
        return []


def _id_function(function: Callable[..., Any]) -> Callable[[Any, Any, str | None], str]:
    """A function ``id=`` with the parameters of ``IdTemplate.fill``."""
    called = _of_input(function, "id=")

    def fill(value: Any, principal: Any, owner: str | None) -> str:
        made = called(value, principal)
        if not isinstance(made, str):
            raise TemporalSettingsError(f"expose(id=…) returned {type(made).__name__}: it must return a string")
        return made

    return fill


def _start_values(
    title: str,
    memo: Callable[..., Mapping[str, Any]] | None,
    search_attributes: Mapping[SearchAttributeKey[Any], Callable[..., Any]] | None,
    start_delay: timedelta | Callable[..., timedelta] | None,
) -> dict[str, OfInput]:
    values: dict[str, OfInput] = {}
    if memo is not None:
        values["memo"] = _of_input(memo, "memo=")
    if isinstance(start_delay, timedelta):
        values["start_delay"] = lambda value, principal: start_delay
    elif start_delay is not None:
        values["start_delay"] = _of_input(start_delay, "start_delay=")
    if search_attributes is not None:
        if not isinstance(search_attributes, Mapping) or not all(
            isinstance(key, SearchAttributeKey) for key in search_attributes
        ):
            raise TemporalSettingsError(
                f"search_attributes= of {title} is a mapping of keys, such as "
                'SearchAttributeKey.for_keyword("CustomerId"), to functions of the input'
            )
        functions = {
            key: _of_input(each, f"search_attributes= ({key.name})") for key, each in search_attributes.items()
        }

        def make(value: Any, principal: Any) -> TypedSearchAttributes:
            made = [(key, function(value, principal)) for key, function in functions.items()]
            return TypedSearchAttributes([SearchAttributePair(key, each) for key, each in made if each is not None])

        values["search_attributes"] = make
    return values
