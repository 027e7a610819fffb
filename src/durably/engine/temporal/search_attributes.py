"""Search attributes of runs, by which lists find them.

They contain no data of events. Routing never uses them, because the index of workflows lags.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Any

from temporalio.client import Client
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes

from durably.engine.core.run_state import RunStatus
from durably.engine.temporal.messages import RunInput
from durably.temporal.namespace import indexed_type, register_and_wait

APP = SearchAttributeKey.for_keyword("DurablyApp")
FUNCTION = SearchAttributeKey.for_keyword("DurablyFunction")
EVENT = SearchAttributeKey.for_keyword("DurablyEvent")
"""The name of the event that triggered the run."""
EVENT_IDS = SearchAttributeKey.for_keyword_list("DurablyEventIds")
PARENT = SearchAttributeKey.for_keyword("DurablyParent")
"""The run that started this one."""
STATUS = SearchAttributeKey.for_keyword("DurablyStatus")
"""The run's status, if Temporal has none for it: a skipped run, or a cancelled run whose workflow failed."""

_KEYS = (APP, FUNCTION, EVENT, EVENT_IDS, PARENT, STATUS)
_RPC_TIMEOUT = dt.timedelta(seconds=10)
_MAX_TEXT = 255
"""Number of characters that SQL visibility stores keep of a Keyword."""
_MAX_WHOLE_IDS = 60
"""Maximum number of ids whose list fits into the 2 KB of a value. If a run has more events, only the random parts of
their ids are stored."""
_RANDOM_CHARACTERS = 16


def keyword(text: str) -> str:
    """A string as an index stores it."""
    return text[:_MAX_TEXT]


def short_event_id(event_id: str) -> str:
    """The random part of an event's id. A large batch has it instead of the id."""
    return event_id[-_RANDOM_CHARACTERS:]


def search_attributes_of(run: RunInput) -> TypedSearchAttributes:
    ids: Sequence[str] = [event.id for event in run.events]
    if len(ids) > _MAX_WHOLE_IDS:
        ids = [short_event_id(each) for each in ids]
    pairs: list[SearchAttributePair[Any]] = [
        SearchAttributePair(APP, keyword(run.app_id)),
        SearchAttributePair(FUNCTION, keyword(run.function_id)),
        SearchAttributePair(EVENT, keyword(run.events[0].name)),
        SearchAttributePair(EVENT_IDS, ids),
    ]
    if run.outcome is not None and run.outcome.status is RunStatus.SKIPPED:
        pairs.append(SearchAttributePair(STATUS, RunStatus.SKIPPED.value))
    if run.parent is not None:
        pairs.append(SearchAttributePair(PARENT, run.parent))
    return TypedSearchAttributes(pairs)


async def register_search_attributes(client: Client) -> None:
    """Register the attributes that the server lacks, and wait until it accepts them.

    Raises ``SearchAttributeError`` with the commands to run if the server does not let this client register them, and
    ``TemporalCredentialsError`` if it denies the whole namespace.
    """
    await register_and_wait(client, {key.name: indexed_type(key) for key in _KEYS}, _RPC_TIMEOUT)
