"""What the commands that register search attributes have in common: a line for each attribute, and one error."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta

from temporalio.service import RPCError

from .connect_failures import explain_refusal
from .connection import Temporal
from .errors import SearchAttributeError
from .search_attributes import (
    DeclaredAttribute,
    IndexedType,
    commands,
    indexed_type,
    known_attributes,
    register,
    type_name,
)

_PATIENCE = timedelta(seconds=10)


def run_register(temporal: Temporal, *, say: Callable[[str], None], check: bool) -> bool:
    """Register what the app declares; with ``check`` only look. Returns whether all is registered afterwards.

    Raises ``SearchAttributeError``, also for two types of one name and for what the server refuses, and
    ``TemporalUnreachableError``.
    """
    try:
        return asyncio.run(_run(temporal, say, check))
    except RPCError as error:
        raise SearchAttributeError(explain_refusal(error.message, temporal.settings)) from error


async def _run(temporal: Temporal, say: Callable[[str], None], check: bool) -> bool:
    wanted = wanted_types([*temporal.search_attributes, *temporal.owner_attributes])
    if not wanted:
        say("no search attributes are declared; temporal.add_search_attributes(…) declares some")
        return True
    client = await temporal.connect()
    if check:
        known = await known_attributes(client, _PATIENCE)
        for name, indexed in wanted.items():
            say(_state(name, indexed, known) + ("" if name in known else f": {commands(client, name, indexed)}"))
        return all(known.get(name) == indexed for name, indexed in wanted.items())
    new = await register(client, wanted, _PATIENCE)
    for name, indexed in wanted.items():
        say(f"{name} ({type_name(indexed)}): {'registered' if name in new else 'is there'}")
    return True


def wanted_types(declared: Iterable[DeclaredAttribute]) -> dict[str, IndexedType]:
    """Pure. Raises ``SearchAttributeError`` for an attribute that is declared with two types."""
    first: dict[str, DeclaredAttribute] = {}
    for each in declared:
        other = first.setdefault(each.key.name, each)
        if indexed_type(other.key) != indexed_type(each.key):
            types = f"{type_name(indexed_type(other.key))} by {other.where}, and {type_name(indexed_type(each.key))}"
            raise SearchAttributeError(f"the search attribute {each.key.name} is declared as {types} by {each.where}")
    return {name: indexed_type(each.key) for name, each in first.items()}


def _state(name: str, indexed: IndexedType, known: Mapping[str, IndexedType]) -> str:
    if name not in known:
        return f"{name} ({type_name(indexed)}): missing"
    if known[name] == indexed:
        return f"{name} ({type_name(indexed)}): is there"
    return f"{name} ({type_name(indexed)}): the server has it as {type_name(known[name])}: give it another name"
