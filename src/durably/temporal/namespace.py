"""A namespace of the server: its search attributes, owners of workflows, and whether workers poll a task queue.

A Temporal server must know search attributes before workflows can have them. Durably registers its own attribute if the
server permits that. If not, as in Temporal Cloud, errors name the command.
"""

import asyncio
import datetime as dt
import logging
import re
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from temporalio.api.enums.v1 import IndexedValueType, TaskQueueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, DescribeTaskQueueRequest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.service import RPCError, RPCStatusCode

from .compat import PAUSED, says_connection_broke
from .errors import SearchAttributeError, TemporalCredentialsError, TemporalSettingsError

REGISTER_COMMANDS = (
    "run `durably temporal register MODULE:GATEWAY` (in Django `manage.py register_search_attributes`, in Flask `flask "
    "temporal register`)"
)
"""Registers what an app declares by key, and owners."""

IndexedType: TypeAlias = "IndexedValueType.ValueType"

KEYWORD: IndexedType = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD

_PATIENCE = timedelta(seconds=15)
"""Seconds until a server accepts a registered attribute. It caches a namespace for some seconds."""

_PAUSE = 0.1
"""Seconds between two checks whether the server accepts an attribute."""

_AWAY = (
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.CANCELLED,
    RPCStatusCode.RESOURCE_EXHAUSTED,
)
"""Statuses of a server that is unreachable or busy, which are not refusals."""

_logger = logging.getLogger("durably.temporal")

_known: weakref.WeakKeyDictionary[Client, set[str]] = weakref.WeakKeyDictionary()
"""Attributes that the server has accepted, by client."""

_lock = threading.Lock()


def type_name(indexed: IndexedType) -> str:
    """``Keyword``, as Temporal's CLI and documentation call it."""
    words = IndexedValueType.Name(indexed).removeprefix("INDEXED_VALUE_TYPE_").split("_")
    return "".join(word.capitalize() for word in words)


def commands(client: Client, name: str, indexed: IndexedType) -> str:
    """The commands of Temporal's own tools that register an attribute.

    One is for a server, one for Temporal Cloud.
    """
    namespace, kind = client.namespace, type_name(indexed)
    return (
        f"run `temporal operator search-attribute create --namespace {namespace} --name {name} --type {kind} "
        f"--address {client.service_client.config.target_host}`, or for "
        f"Temporal Cloud `tcld namespace search-attributes add --namespace {namespace} --search-attribute "
        f'"{name}={kind}"`'
    )


async def register(client: Client, attributes: Mapping[str, IndexedType], rpc_timeout: timedelta) -> list[str]:
    """Register attributes. Returns the names of new ones.

    Raises ``SearchAttributeError`` for an attribute that the server knows with another type, and if the server does not
    let this client register attributes. Raises ``RPCError`` if the server is unreachable.
    """
    new = []
    try:
        try:
            known = await known_attributes(client, rpc_timeout)
        except RPCError as error:
            if error.status is not RPCStatusCode.UNIMPLEMENTED:
                raise
            known = {}  # The time-skipping test server does not list them.
        for name, indexed in attributes.items():
            if known.get(name, indexed) != indexed:
                raise SearchAttributeError(
                    f"the server knows the search attribute {name} as {type_name(known[name])}, and the app needs "
                    f"{type_name(indexed)}: give it another name"
                )
        for name in [each for each in attributes if each not in known]:
            if await _add(client, name, attributes[name], rpc_timeout):
                new.append(name)
    except RPCError as error:
        if error.status in _AWAY or says_connection_broke(error):
            raise
        if error.status is RPCStatusCode.NOT_FOUND:
            raise SearchAttributeError(
                f'the Temporal server has no namespace "{client.namespace}": check TEMPORAL_NAMESPACE, or create it: '
                f"`temporal operator namespace create {client.namespace}`"
            ) from error
        steps = "; ".join(commands(client, name, indexed) for name, indexed in attributes.items())
        raise SearchAttributeError(
            f"the search attribute {', '.join(attributes)} must be registered in the namespace {client.namespace}, and "
            f"the server does not let this app do it ({error.status.name}: {error.message}): {steps}"
        ) from error
    return sorted(new)


async def _add(client: Client, name: str, indexed: IndexedType, rpc_timeout: timedelta) -> bool:
    """Add one attribute; ``False`` if the server has it already.

    There is one attribute a request: the server refuses a request with several if it has one of them already.
    """
    request = AddSearchAttributesRequest(namespace=client.namespace, search_attributes={name: indexed})
    try:
        await client.operator_service.add_search_attributes(request, timeout=rpc_timeout)
    except RPCError as error:
        if error.status is RPCStatusCode.ALREADY_EXISTS:  # Another process was faster.
            return False
        raise
    return True


@dataclass(frozen=True)
class DeclaredAttribute:
    """A search attribute that the app sets.

    ``where`` is the code that does, such as ``expose(OrderWorkflow)``.
    """

    key: SearchAttributeKey[Any]
    where: str


async def find_errors(client: Client, declared: Iterable[DeclaredAttribute], rpc_timeout: timedelta) -> list[str]:
    """A message for each attribute that the server does not know as declared.

    Raises ``RPCError`` if the server is unreachable, or does not list search attributes for this client.
    """
    known = await known_attributes(client, rpc_timeout)
    errors = []
    for each in dict.fromkeys(declared):
        name, wanted = each.key.name, indexed_type(each.key)
        if name not in known:
            errors.append(
                f"{each.where} sets the search attribute {name}, which is not registered in the namespace "
                f"{client.namespace}, so that its workflows cannot be started: {REGISTER_COMMANDS}, or "
                f"{commands(client, name, wanted)}"
            )
        elif known[name] != wanted:
            errors.append(
                f"{each.where} sets the search attribute {name} as {type_name(wanted)}, and the namespace "
                f"{client.namespace} has it as {type_name(known[name])}: give it another name, or its type"
            )
    return errors


async def log_errors(client: Client, declared: Sequence[DeclaredAttribute], rpc_timeout: timedelta) -> None:
    """Log each error once a process has connected."""
    try:
        errors = await find_errors(client, declared, rpc_timeout)
    except RPCError as error:
        names = ", ".join(each.key.name for each in declared)
        _logger.warning(
            "Cannot check whether the search attributes %s are registered: the server does not list them (%s)",
            *(names, error.status.name),
        )
        return
    for message in errors:
        _logger.error("%s", message)


async def known_attributes(client: Client, rpc_timeout: timedelta) -> dict[str, IndexedType]:
    """Types of the namespace's attributes by name, Temporal's own included.

    A broken connection is repeated, because it says nothing about the server. Raises ``RPCError``.
    """
    listed = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace), retry=True, timeout=rpc_timeout
    )
    return {**listed.system_attributes, **listed.custom_attributes}


def indexed_type(key: SearchAttributeKey[Any]) -> IndexedType:
    """The server's name for a key's type."""
    return IndexedValueType.Value(f"INDEXED_VALUE_TYPE_{key.indexed_value_type.name}")


async def ensure_keyword(client: Client, name: str, rpc_timeout: timedelta) -> None:
    """Register a Keyword unless the server knows it, once per client.

    Waits until the server accepts it. Raises ``SearchAttributeError``, and ``RPCError`` if the server is unreachable.
    """
    if name in _known.get(client, ()):
        return
    if not await _is_accepted(client, f"{name} = 'none'", rpc_timeout):
        await register_and_wait(client, {name: KEYWORD}, rpc_timeout)
    with _lock:
        _known.setdefault(client, set()).add(name)


async def register_and_wait(client: Client, attributes: Mapping[str, IndexedType], rpc_timeout: timedelta) -> None:
    """Register attributes that the server does not know.

    Waits until the server accepts them. Raises the errors of ``register``, and ``TemporalCredentialsError`` if the
    server denies the namespace.
    """
    try:
        await register(client, attributes, rpc_timeout)
    except SearchAttributeError:
        await _check_access(client, rpc_timeout)
        raise
    end = time.monotonic() + _PATIENCE.total_seconds()
    for name, indexed in attributes.items():
        while not await _is_accepted(client, f"`{name}` IS NULL", rpc_timeout):
            if time.monotonic() > end:
                raise SearchAttributeError(
                    f"the server has registered the search attribute {name} and does not accept it yet: if this "
                    f"continues, {commands(client, name, indexed)}"
                )
            await asyncio.sleep(_PAUSE)


async def _check_access(client: Client, rpc_timeout: timedelta) -> None:
    """Raises ``TemporalCredentialsError``.

    It omits the server's message, which may contain credentials.
    """
    request = DescribeNamespaceRequest(namespace=client.namespace)
    try:
        await client.workflow_service.describe_namespace(request, retry=True, timeout=rpc_timeout)
    except RPCError as error:
        if error.status in (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED):
            address = client.service_client.config.target_host
            raise TemporalCredentialsError(
                f"the Temporal server at {address} denies this app the namespace {client.namespace!r} "
                f"({error.status.name}): give its API key or certificate access to the namespace, or set another by "
                "TEMPORAL_NAMESPACE",
                address,
            ) from None


async def _is_accepted(client: Client, condition: str, rpc_timeout: timedelta) -> bool:
    try:
        await client.count_workflows(condition, rpc_timeout=rpc_timeout)
    except RPCError as error:
        if error.status is RPCStatusCode.INVALID_ARGUMENT:
            return False
        if error.status is RPCStatusCode.UNIMPLEMENTED:  # The time-skipping test server, which has no visibility.
            return True
        raise
    return True


def declared_types(declared: Iterable[DeclaredAttribute]) -> dict[str, IndexedType]:
    """Types of the declared attributes by name.

    Raises ``SearchAttributeError`` for an attribute that is declared with two types.
    """
    first: dict[str, DeclaredAttribute] = {}
    for each in declared:
        other = first.setdefault(each.key.name, each)
        if indexed_type(other.key) != indexed_type(each.key):
            types = f"{type_name(indexed_type(other.key))} by {other.where}, and {type_name(indexed_type(each.key))}"
            raise SearchAttributeError(f"the search attribute {each.key.name} is declared as {types} by {each.where}")
    return {name: indexed_type(each.key) for name, each in first.items()}


# The owner of a workflow, which is a search attribute


OWNER_ATTRIBUTE = "DurablyOwner"

DURABLY_OWNER = SearchAttributeKey.for_keyword(OWNER_ATTRIBUTE)
"""For ``workflow.upsert_search_attributes([DURABLY_OWNER.value_set("bob")])``."""

_MAXIMUM_OWNER = 255
"""Characters. SQL visibility stores keep no more of a Keyword."""

_UNFIT = frozenset('"\\`')
"""SQL visibility stores do not find keywords with these characters."""


_DEFAULT_REPR = re.compile(r"<.* at 0x[0-9a-fA-F]+.*>")


def describe_shared_text(text: str) -> str | None:
    """Describes a string that several users can have; ``None`` for any other string.

    ``str`` returns such strings for a missing attribute, and for an object without ``__str__``: the string has the
    address in memory, which another user's object gets later.
    """
    if text == "None":
        return 'the string "None", as str(None) makes it'
    if _DEFAULT_REPR.fullmatch(text):
        return "the string of an object without __str__, which contains its address in memory"
    return None


def owned_by(
    owner: str, others: TypedSearchAttributes | None = None, *, attribute: str = OWNER_ATTRIBUTE
) -> TypedSearchAttributes:
    """Search attributes of a workflow that belongs to ``owner``.

    ``owner`` is a string as ``expose(owner=…)`` returns it. ``others`` are further search attributes. ``attribute`` is
    that of ``Gateway(owner_attribute=…)``. Raises ``TemporalSettingsError`` for an owner that a server cannot find, and
    if ``others`` has the attribute.
    """
    pairs = list(others or ())
    if any(pair.key.name == attribute for pair in pairs):
        raise TemporalSettingsError(f"owned_by() got {attribute} among the other search attributes: omit it there")
    text = check_owner(owner, "owned_by(…) got")
    return TypedSearchAttributes([*pairs, SearchAttributePair(SearchAttributeKey.for_keyword(attribute), text)])


def check_owner(owner: Any, source: str) -> str:
    """Check and return an owner that the app gives.

    ``source`` begins the error. Raises ``TemporalSettingsError``, without the owner, which may be personal data.
    """
    if not isinstance(owner, str):
        kind = "a coroutine" if hasattr(owner, "__await__") else type(owner).__name__
        raise TemporalSettingsError(
            f"{source} {kind}: an owner is a string, such as str(user.id), or None for no owner"
        )
    if (shared := describe_shared_text(owner)) is not None:
        raise TemporalSettingsError(
            f"{source} {shared}: several users could have it. Use a unique string, such as str(user.id), or None "
            'for no owner. If users may really have that name, put a word before it: f"user:{user.name}"'
        )
    is_unfit = not owner.isprintable() or _UNFIT & set(owner) or "'" in (owner[:1], owner[-1:])
    if not owner or len(owner) > _MAXIMUM_OWNER or is_unfit:
        raise TemporalSettingsError(
            f"{source} a string that is empty, longer than {_MAXIMUM_OWNER} characters, has control characters, double "
            "quotes, backquotes or backslashes, or starts or ends with a single quote: a Temporal server cannot find "
            "workflows by it"
        )
    return owner


# Workers and workflows


async def namespace_problem(client: Client) -> str | None:
    """The reason if the server does not answer for the client's namespace."""
    try:
        await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return f'the server has no namespace "{client.namespace}"'
        return f"{error.status.name}: {error.message}"
    return None


_SILENCE = dt.timedelta(seconds=90)
"""A live worker polls at least once a minute; the server lists a dead one for five minutes."""


def is_open(status: WorkflowExecutionStatus | None) -> bool:
    """Whether the workflow has not ended."""
    return status is WorkflowExecutionStatus.RUNNING or status is PAUSED


async def missing_worker(client: Client, task_queue: str, timeout: dt.timedelta) -> str | None:
    """A sentence if no worker polls the task queue for workflows. Raises ``RPCError``."""
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=task_queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    )
    found = await client.workflow_service.describe_task_queue(request, timeout=timeout)
    polls = [poller.last_access_time.ToDatetime(dt.UTC) for poller in found.pollers]
    if polls and dt.datetime.now(dt.UTC) - max(polls) <= _SILENCE:
        return None
    return f'no worker polls the task queue "{task_queue}": is one running, with that queue and namespace?'
