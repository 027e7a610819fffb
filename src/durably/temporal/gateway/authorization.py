"""Who may do what: what the app's ``authorize`` hook is told, and what its answer means."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from temporalio.client import WorkflowExecutionDescription

from durably.io.background_loop import get_background_loop
from durably.io.http_client import IO
from durably.temporal.errors import TemporalSettingsError

from .exposure import Exposure, Operation
from .messages import CallBlocking
from .ownership import owner_of
from .principals import is_anonymous
from .problems import Problem, unauthenticated
from .reading import shown_memo
from .schedule_exposure import Place
from .target import Target


@dataclass(frozen=True)
class _Facts:
    """The facts of a workflow that authorization can use; all are empty if the workflow does not exist."""

    owner: str | None = None
    memo: Mapping[str, Any] = field(default_factory=dict)
    description: WorkflowExecutionDescription | None = None


class ActionSubject:
    """The workflow that an action is about. The server is asked when the first of the facts is read.

    ``new_owner`` is the owner that a workflow to be started will have, or the owner of all workflows of a batch.
    """

    def __init__(
        self, target: Target | None = None, owner_attribute: str = "", *, new_owner: str | None = None
    ) -> None:
        self._target, self._owner_attribute = target, owner_attribute
        self._facts = _Facts(owner=new_owner) if target is None else None

    async def load(self) -> _Facts:
        if self._facts is None:
            assert self._target is not None
            try:
                description = await self._target.check()
            except Problem as problem:
                if problem.status is not HTTPStatus.NOT_FOUND:
                    raise
                self._facts = _Facts()
            else:
                owner = owner_of(description, self._owner_attribute)
                self._facts = _Facts(owner, await shown_memo(description), description)
        return self._facts

    def get(self) -> _Facts:
        """In a thread. Raises ``RuntimeError`` on an event loop, if the facts have not been loaded."""
        if self._facts is None and asyncio._get_running_loop() is not None:
            raise RuntimeError(
                "an asynchronous authorize= must `await action.load()` before it reads owner, memo or description"
            )
        return self._facts or get_background_loop().run(self.load())


@dataclass(frozen=True, kw_only=True)
class Action:
    """What somebody wants to do.

    ``workflow`` is the name in the URL, ``workflow_id`` the id (that of the input when one is started; ``None`` where
    there is none yet), ``name`` the signal, query or update, ``input`` what was sent, validated. ``principal`` is who
    asks, as the framework knows it (Django's ``request.user``, what a FastAPI dependency gives), and ``request`` the
    framework's own. For an action on schedules, ``exposure`` is a ``ScheduleExposure``, ``name`` the schedule's id
    (``None`` for the list) and ``workflow_id`` is ``None``; schedules have no ``owner``, ``memo`` or ``description``.

    ``owner``, ``memo`` and ``description`` are those of the workflow that the URL names. They cost one request to the
    server, when the first of them is read; an asynchronous ``authorize`` calls ``await action.load()`` before. If there
    is no such workflow, or ``owner=`` and ``staff=`` keep it from the principal, they are ``None``, empty and ``None``.
    """

    operation: Operation
    exposure: Place
    workflow_id: str | None
    name: str | None
    input: Any
    principal: Any
    request: Any
    subject: ActionSubject = field(default_factory=ActionSubject, repr=False, compare=False)

    @property
    def workflow(self) -> str:
        return self.exposure.name

    async def load(self) -> None:
        """Ask the server for ``owner``, ``memo`` and ``description``, unless that has been done."""
        await self.subject.load()

    @property
    def owner(self) -> str | None:
        """The workflow's owner (``expose(owner=…)``), or the owner that a workflow to be started will have.

        For a batch it is the owner of all its workflows; ``None`` if it is not limited to one owner.
        """
        return self.subject.get().owner

    @property
    def memo(self) -> Mapping[str, Any]:
        return self.subject.get().memo

    @property
    def description(self) -> WorkflowExecutionDescription | None:
        return self.subject.get().description


Authorize = Callable[[Action], bool | Awaitable[bool]]


class Unauthenticated(Exception):
    """Raise in ``authorize`` to answer 401; ``challenge`` is the ``WWW-Authenticate`` header."""

    def __init__(self, challenge: str = "Bearer") -> None:
        super().__init__("authentication is needed")
        self.challenge = challenge


def check_policy(
    authorize: Callable[[Any], Any] | None, allow_anonymous: bool, server: str, everybody_may: str
) -> None:
    """Raises ``TemporalSettingsError`` unless one of both is given: a server without a guard must be asked for.

    ``server`` is its class, such as ``Gateway``; ``everybody_may`` is what it lets everybody do without a guard.
    """
    if authorize is None and not allow_anonymous:
        raise TemporalSettingsError(
            f"who may use the {server}? Give {server} authorize=, a function of the action that returns whether it is "
            f"allowed, or allow_anonymous=True to let everybody {everybody_may}"
        )
    if authorize is not None and allow_anonymous:
        raise TemporalSettingsError(f"{server}: authorize= and allow_anonymous=True exclude each other")


def check_owners(allow_anonymous: bool, exposures: Mapping[str, Exposure]) -> None:
    """Raises ``TemporalSettingsError`` for owners in a gateway that is open to all."""
    owned = [exposure.name for exposure in exposures.values() if exposure.ownership is not None]
    if allow_anonymous and owned:
        raise TemporalSettingsError(
            f"{owned[0]} has owner=, and allow_anonymous=True knows no owners: give authorize= instead"
        )


async def ask(
    authorize: Callable[[Any], Any], action: object, is_async: bool, io: IO, call_blocking: CallBlocking
) -> object:
    """The verdict. ``is_async`` says whether ``authorize`` is a coroutine function; any other may block its thread."""
    verdict = authorize(action) if is_async else await call_blocking(lambda: authorize(action))
    return await io.resolve(verdict) if inspect.isawaitable(verdict) else verdict


def check_verdict(verdict: object, principal: Any) -> None:
    """Only ``True`` allows. Otherwise raises a problem: 401 for an anonymous principal, and 403 for any other."""
    if verdict is not True:
        if is_anonymous(principal):
            raise unauthenticated()
        raise Problem(HTTPStatus.FORBIDDEN, "forbidden", "you may not do this")
