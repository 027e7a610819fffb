"""Who may do what: what the app's ``authorize`` hook is told, and what its answer means."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from durably.temporal.errors import TemporalSettingsError

from .exposure import Exposure, Operation
from .problems import Problem


@dataclass(frozen=True, kw_only=True)
class Action:
    """What somebody wants to do.

    ``workflow`` is the name in the URL, ``workflow_id`` the id (that of the input when one is started; ``None`` where
    there is none yet), ``name`` the signal, query or update, ``input`` what was sent, validated. ``principal`` is who
    asks, as the framework knows it (Django's ``request.user``, what a FastAPI dependency gives), and ``request`` the
    framework's own.
    """

    operation: Operation
    exposure: Exposure
    workflow_id: str | None
    name: str | None
    input: Any
    principal: Any
    request: Any

    @property
    def workflow(self) -> str:
        return self.exposure.name


Authorize = Callable[[Action], bool | Awaitable[bool]]


class Unauthenticated(Exception):
    """Raise in ``authorize`` to answer 401; ``challenge`` is the ``WWW-Authenticate`` header."""

    def __init__(self, challenge: str = "Bearer") -> None:
        super().__init__("authentication is needed")
        self.challenge = challenge


def check_policy(authorize: Authorize | None, allow_anonymous: bool) -> None:
    """A gateway that nobody guards must be asked for in so many words."""
    if authorize is None and not allow_anonymous:
        raise TemporalSettingsError(
            "who may use the gateway? Give authorize=, a function that is told of each action and returns whether it "
            "is allowed, or allow_anonymous=True to let everybody do all that is exposed"
        )
    if authorize is not None and allow_anonymous:
        raise TemporalSettingsError("authorize= and allow_anonymous=True exclude each other")


def check_verdict(verdict: object) -> None:
    """Only ``True`` allows."""
    if verdict is not True:
        raise Problem(HTTPStatus.FORBIDDEN, "forbidden", "you may not do this")


def unauthenticated(error: Unauthenticated) -> Problem:
    return Problem(
        HTTPStatus.UNAUTHORIZED,
        "unauthenticated",
        "authentication is needed",
        headers={"WWW-Authenticate": error.challenge},
    )
