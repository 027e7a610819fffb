"""Who owns a workflow, and who may reach it. Pure, apart from the app's own functions over the principal.

The owner is a text in a search attribute: it survives continue-as-new, retries, cron and reset, lists can be filtered
by it, and a workflow can hand itself over by upserting it.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.client import WorkflowExecution
from temporalio.common import TypedSearchAttributes

from durably.temporal.errors import TemporalSettingsError
from durably.temporal.owners import check_owner, owned_by
from durably.temporal.surroundings import is_async

from .principals import is_anonymous
from .problems import Problem, not_found, unauthenticated


@dataclass(frozen=True)
class Ownership:
    """The functions that ``expose(owner=…, staff=…)`` was given; they see the principal and nothing else."""

    owner: Callable[[Any], str | None]
    staff: Callable[[Any], bool] | None = None

    def access(self, principal: Any) -> "Access":
        """What the principal may reach. Raises the problem 401 for a principal that is neither owner nor staff."""
        if is_anonymous(principal):
            raise unauthenticated()
        owner = self.owner(principal)
        sees_all = False if self.staff is None else _verdict(self.staff(principal))
        if owner is None and not sees_all:
            raise unauthenticated()
        return Access(None if owner is None else check_owner(owner, "expose(owner=…) returned"), sees_all)


@dataclass(frozen=True)
class Access:
    """``owner`` is the owner text of the principal. With ``sees_all`` the principal can reach every workflow."""

    owner: str | None = None
    sees_all: bool = True

    def reaches(self, owner: str | None) -> bool:
        return self.sees_all or (self.owner is not None and owner == self.owner)


EVERYTHING = Access()
"""For exposures without ``owner=``: ``authorize`` alone decides."""


def declare_ownership(owner: Any, staff: Any, title: str) -> Ownership | None:
    """From the arguments of ``expose``. Raises ``TemporalSettingsError``."""
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


def _verdict(verdict: Any) -> bool:
    """Only ``True`` lets in, as with ``authorize``."""
    if not isinstance(verdict, bool):
        raise TemporalSettingsError(f"expose(staff=…) returned {type(verdict).__name__}: it must return True or False")
    return verdict


def owner_of(execution: WorkflowExecution, attribute: str) -> str | None:
    """The owner in a description or in a row of a list; ``None`` for a workflow without one.

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


def stamp(owner: str | None, attribute: str, others: TypedSearchAttributes | None) -> TypedSearchAttributes | None:
    """The search attributes of a workflow that is started. Raises ``TemporalSettingsError``."""
    if any(pair.key.name == attribute for pair in others or ()):
        raise TemporalSettingsError(f"expose(search_attributes=…) sets {attribute}, which owner= sets by itself")
    return others if owner is None else owned_by(owner, others, attribute=attribute)


def check_attribute_name(name: str) -> str:
    """A name that a visibility query can have as it is. Raises ``TemporalSettingsError``."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise TemporalSettingsError(f'owner_attribute="{name}" is no name of a search attribute: letters, digits, _')
    return name


def no_such_workflow() -> Problem:
    """The same whether there is none, it is another's, or of another type."""
    return not_found("there is no such workflow here")
