"""The runs that led to an event, read from the database: to name the functions of a runaway chain, and to find the
descendants of a cancelled run."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from durably.engine.head import RunStatus
from durably.engine.origins import Origin, describe_chain, explain_runaway
from durably.protocol.errors import ErrorData

from .arrivals import Arrival
from .registry import Function
from .store import RunRow

if TYPE_CHECKING:
    from .ledger import Entry

_MOST_NAMED = 8
MOST_ANCESTORS = 100
"""The maximum number of ancestors to follow. Each costs two look-ups."""


def ancestors(entry: "Entry", origin: Origin | None) -> Iterator[RunRow]:
    """The run that sent an event, the run that sent that run's event, and so on, until a run is no longer known."""
    for _ in range(MOST_ANCESTORS):
        run = None if origin is None else entry.store.find_run(origin.run_key)
        if run is None:
            return
        yield run
        origin = entry.events.trigger_of(run.event_key).origin


def origin_before(run: RunRow, trigger: Arrival) -> Origin | None:
    """The origin of a run's trigger, from which the origins of its events are made. A rerun begins a new chain."""
    return trigger.origin if run.rerun_of is None else None


def descends_from_cancelled(entry: "Entry", function_id: str, origin: Origin | None, since: int) -> bool:
    """Whether a run of this function that was cancelled at ``since`` or later led to an event."""
    return any(
        run.function_id == function_id and run.status is RunStatus.CANCELLED and entry.store.ended_at(run.key) >= since
        for run in ancestors(entry, origin)
    )


def refuse_runaway(
    entry: "Entry", function: Function, origin: Origin | None, *, tells_end: bool = False
) -> ErrorData | None:
    """The reason why an event of this origin must not start a run of a function, or ``None``."""
    reason = explain_runaway(origin, entry.max_depth, tells_end=tells_end)
    if reason is None:
        return None
    named = [function.id]
    is_whole = True
    for run in ancestors(entry, origin):
        if len(named) == _MOST_NAMED:
            is_whole = False
            break
        named.append(run.function_id)
    chain = describe_chain(named, is_whole)
    return ErrorData(name="RunawayError", message=f"functions start each other endlessly ({chain}): {reason}")
