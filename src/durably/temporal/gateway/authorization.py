"""Principals, owners of workflows, and the app's ``authorize`` hook.

The owner of a workflow is a string in a search attribute. Continue-as-new, retries, cron and reset keep it, lists can
be filtered by it, and a workflow can change it by upserting the attribute.
"""

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from uuid import UUID

from temporalio.api.common.v1 import Payload
from temporalio.client import WorkflowExecution, WorkflowExecutionDescription

from durably.execution.step import is_async
from durably.io.background_loop import get_background_loop, running_loop
from durably.io.http_client import IO
from durably.protocol.options import check_function, check_type
from durably.temporal.errors import TemporalSettingsError, UnknownPrincipalError
from durably.temporal.namespace import check_owner, describe_shared_text

from .exposure import Exposure, Operation
from .messages import CallBlocking
from .problems import Problem, Unauthenticated, not_found

Identify = Callable[[Any], str]

ANONYMOUS = json.dumps(["anonymous"])

_REMEDY = (
    "Give Gateway(identify=…), a function of the principal that returns a unique string for each, such as "
    "lambda user: user.email"
)


def check_principal(principal: Any) -> Any:
    """The principal as the app gave it; ``None`` for a proxy of ``None``.

    Raises ``UnknownPrincipalError`` for a coroutine, generator or function. In this case ``principal=`` is asynchronous
    or was not called, and an ``authorize`` with ``principal is not None`` would allow all requests.
    """
    if principal.__class__ is type(None):
        return None
    kinds = (inspect.isawaitable, inspect.isgenerator, inspect.isasyncgen, inspect.isroutine)
    if any(is_kind(principal) for is_kind in kinds):
        if inspect.iscoroutine(principal):
            principal.close()
        raise UnknownPrincipalError(
            f"principal= gives a {type(principal).__name__} instead of a principal. In Flask, Django and Tornado it is "
            "a plain function: in Tornado, set self.current_user in an asynchronous prepare(), not in "
            "get_current_user()"
        )
    return principal


def principal_key(principal: Any, identify: Identify | None = None) -> str:
    """A string that is unique for each principal, and the same in each process.

    Idempotency keys and page tokens are bound to it. It is hashed before it is stored or sent.

    - ``None`` and objects with ``is_anonymous``, or with a false ``is_authenticated``, are anonymous.
    - ``identify``, if given, decides for all other principals.
    - The key of a ``str``, ``int`` or ``UUID`` is its value.
    - The key of another object is ``pk`` or ``id`` with its class, or ``sub`` and ``iss``, which are members of a
      mapping (claims of a token) or attributes. Subjects are unique within their issuer (RFC 7519, section 4.1.2).

    Raises ``UnknownPrincipalError`` for any other principal: a guess could give one user the workflows of another.
    """
    if is_anonymous(principal):
        return ANONYMOUS
    if identify is not None:
        text = identify(principal)
        if not isinstance(text, str) or not text:
            raise UnknownPrincipalError(
                f"Gateway(identify=…) returned {type(text).__name__} for a principal of the class "
                f"{_class_of(principal)}: it must return a string that is not empty"
            )
        if (shared := describe_shared_text(text)) is not None:
            raise UnknownPrincipalError(
                f"Gateway(identify=…) returned {shared}, for a principal of the class {_class_of(principal)}: several "
                "users could have it. It must return a unique string. If users may really have that name, put a "
                'word before it: f"user:{user.name}"'
            )
        return json.dumps(["identify", text])
    if isinstance(principal, (str, int, UUID)):
        return json.dumps(_plain(principal, principal, "value"))
    if isinstance(principal, Mapping):
        subject, issuer = principal.get("sub"), principal.get("iss")
    else:
        for name in ("pk", "id"):
            if (value := getattr(principal, name, None)) is not None:
                return json.dumps([name, _class_of(principal), *_plain(principal, value, name)])
        subject, issuer = getattr(principal, "sub", None), getattr(principal, "iss", None)
    if subject is None:
        raise UnknownPrincipalError(
            f"a principal of the class {_class_of(principal)} has no pk, id or sub that distinguishes it from others. "
            f"{_REMEDY}"
        )
    issuers = [] if issuer is None else _plain(principal, issuer, "iss")
    return json.dumps(["sub", *_plain(principal, subject, "sub"), *issuers])


def _plain(principal: Any, value: Any, name: str) -> list[str]:
    if isinstance(value, bool) or not isinstance(value, (str, int, UUID)) or value == "":
        found = "empty" if value == "" else f"of the class {type(value).__name__}"
        raise UnknownPrincipalError(
            f"the {name} of a principal of the class {_class_of(principal)} is not a string, number or UUID that "
            f"distinguishes it from others: it is {found}. {_REMEDY}"
        )
    kind = next(kind for kind in (str, int, UUID) if isinstance(value, kind))
    return [kind.__name__, str(value)]


def _class_of(principal: Any) -> str:
    """The class of the user. Proxies also return it as ``__class__``."""
    kind = principal.__class__
    return f"{kind.__module__}.{kind.__qualname__}"


def is_anonymous(principal: Any) -> bool:
    """Whether the principal is ``None`` or an object that is marked as anonymous.

    The users of Django, flask-login and Starlette have these attributes. Raises ``UnknownPrincipalError`` for a method,
    which would count as true.
    """
    if principal is None:
        return True
    for name, anonymous in (("is_anonymous", True), ("is_authenticated", False)):
        value = getattr(principal, name, None)
        if callable(value):
            raise UnknownPrincipalError(
                f"{name} of a principal of the class {_class_of(principal)} is a method: it must be True or False, "
                "such as a property"
            )
        # An attribute of another type has another meaning, such as a database column of that name.
        if isinstance(value, bool):
            return value is anonymous
    return False


@dataclass(frozen=True)
class Access:
    """The workflows that a principal can reach: those of ``owner``, or all."""

    owner: str | None = None
    sees_all: bool = True

    def reaches(self, owner: str | None) -> bool:
        return self.sees_all or (self.owner is not None and owner == self.owner)


def access_of(exposure: Exposure, principal: Any) -> Access:
    """The access of a principal. Raises 401 unless it is an owner or staff.

    Without ``owner=`` it is everything: only ``authorize`` decides.
    """
    if exposure.owner is None:
        return Access()
    if is_anonymous(principal):
        raise Unauthenticated
    owner = exposure.owner(principal)
    sees_all = False if exposure.staff is None else exposure.staff(principal)
    if not isinstance(sees_all, bool):
        raise TemporalSettingsError(f"expose(staff=…) returned {type(sees_all).__name__}: it must return True or False")
    if owner is None and not sees_all:
        raise Unauthenticated
    return Access(None if owner is None else check_owner(owner, "expose(owner=…) returned"), sees_all)


def owner_of(execution: WorkflowExecution, attribute: str) -> str | None:
    """The owner in a description or in a row of a list, or ``None``.

    Raises ``TemporalSettingsError`` if the attribute is registered with another type than Keyword.
    """
    fields: Mapping[str, Payload] = execution.raw_info.search_attributes.indexed_fields
    if attribute not in fields:
        return None
    payload = fields[attribute]
    kind = payload.metadata.get("type", b"Keyword").decode()
    if kind != "Keyword":
        raise TemporalSettingsError(
            f"the search attribute {attribute} is registered as {kind}: owners need a Keyword. Register another one "
            'and name it with Gateway(owner_attribute="…")'
        )
    value = json.loads(payload.data) if payload.data else None
    return value if isinstance(value, str) else None


def no_such_workflow() -> Problem:
    """The problem for a workflow that does not exist, or has another owner or type."""
    return not_found("there is no such workflow here")


@dataclass(frozen=True)
class Facts:
    """Facts of a workflow for ``authorize``. All are empty if it does not exist."""

    owner: str | None = None
    memo: Mapping[str, Any] = field(default_factory=dict)
    description: WorkflowExecutionDescription | None = None


@dataclass(eq=False, kw_only=True)
class Action:
    """An operation that a principal requests.

    - ``workflow``: the name in the URL.
    - ``workflow_id``: the id in the URL or of the workflow to be started; ``None`` for lists.
    - ``name``: the name of the signal, query or update.
    - ``input``: the validated input.
    - ``principal``: the user as the framework provides it (Django's ``request.user``, the value of a FastAPI
      dependency).
    - ``request``: the framework's request.
    - ``owner``, ``memo``, ``description``: facts of the workflow in the URL. The first one that is read costs one
      request to the server. An asynchronous ``authorize`` calls ``await action.load()`` first. They are ``None``, empty
      and ``None`` if the workflow does not exist, and if the principal cannot reach it because of ``owner=`` and
      ``staff=``. ``owner`` of a start is that of the new workflow; of a list that of all workflows in it, or ``None``
      if it has those of several.
    """

    operation: Operation
    exposure: Exposure
    workflow_id: str | None
    name: str | None
    input: Any
    principal: Any
    request: Any
    find_facts: Callable[[], Awaitable[Facts]] = field(repr=False)
    facts: Facts | None = field(default=None, repr=False)

    @property
    def workflow(self) -> str:
        return self.exposure.name

    async def load(self) -> None:
        """Fetch ``owner``, ``memo`` and ``description``, unless they are known."""
        if self.facts is None:
            self.facts = await self.find_facts()

    @property
    def owner(self) -> str | None:
        return self._loaded.owner

    @property
    def memo(self) -> Mapping[str, Any]:
        return self._loaded.memo

    @property
    def description(self) -> WorkflowExecutionDescription | None:
        return self._loaded.description

    @property
    def _loaded(self) -> Facts:
        """Raises ``RuntimeError`` on an event loop if the facts have not been loaded."""
        if self.facts is None:
            if running_loop() is not None:
                raise RuntimeError(
                    "an asynchronous authorize= must `await action.load()` before it reads owner, memo or description"
                )
            get_background_loop().run(self.load())
        assert self.facts is not None
        return self.facts


Authorize = Callable[[Action], bool | Awaitable[bool]]


class Guard:
    """The policy of a gateway: a function ``authorize``, or open to all clients.

    Raises ``TemporalSettingsError`` unless exactly one of ``authorize`` and ``allow_anonymous`` is given.
    """

    def __init__(self, authorize: Authorize | None, allow_anonymous: bool) -> None:
        # A string such as "false" would allow all clients.
        check_type(allow_anonymous, "Gateway: allow_anonymous", bool, "True or False", TemporalSettingsError)
        check_function(authorize, "Gateway: authorize", TemporalSettingsError)
        if authorize is None and not allow_anonymous:
            raise TemporalSettingsError(
                "Gateway needs a policy: give it authorize=, a function of the action that returns whether it is "
                "allowed, or allow_anonymous=True, with which all clients can do everything that is exposed"
            )
        if authorize is not None and allow_anonymous:
            raise TemporalSettingsError("Gateway: authorize= and allow_anonymous=True cannot be combined")
        self.is_open = authorize is None
        self._authorize = authorize

    async def check(self, action: Action, io: IO | None, call_blocking: CallBlocking | None) -> None:
        """Raises the problem 401 or 403 unless ``authorize`` returns ``True``.

        ``io`` is ``None`` on an event loop. There a synchronous ``authorize`` runs in another thread.
        """
        authorize = self._authorize
        if authorize is None:
            return
        if io is not None or is_async(authorize):
            verdict = authorize(action)
        else:
            verdict = await (call_blocking or asyncio.to_thread)(lambda: authorize(action))
        if inspect.isawaitable(verdict):
            verdict = await (verdict if io is None else io.resolve(verdict))
        if verdict is not True:
            if is_anonymous(action.principal):
                raise Unauthenticated
            raise Problem(HTTPStatus.FORBIDDEN, "forbidden", "you are not allowed to do this")
