"""Users: the shop's staff by STAFF_TOKEN, its customers by CUSTOMER_TOKENS, such as {"ada": "her token"}.

An app of yours asks its sessions or its identity provider.
"""

import json
import os
import secrets
from dataclasses import dataclass

from durably.temporal.gateway import FOR_OWNERS, Action, Operation

FOR_CUSTOMERS = FOR_OWNERS - {Operation.SIGNAL}


@dataclass(frozen=True)
class User:
    """``id`` owns the orders that the user places."""

    id: str
    is_staff: bool = False


def find_user(token: str) -> User | None:
    """The user of the token; ``None`` if it is unknown. Without settings every token is unknown."""
    known = {User(f"customer_{name}"): its for name, its in json.loads(os.environ.get("CUSTOMER_TOKENS", "{}")).items()}
    known[User("staff", is_staff=True)] = os.environ.get("STAFF_TOKEN", "")
    for user, its in known.items():
        if its and secrets.compare_digest(token.encode(), its.encode()):
            return user
    return None


def authorize(action: Action) -> bool:
    """Customers do not ship. Whose workflow it is, the gateway checks after this (``owner=``)."""
    return action.principal.is_staff or action.operation in FOR_CUSTOMERS
