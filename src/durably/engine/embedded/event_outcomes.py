"""What events did besides starting runs: the waits they ended and the runs they cancelled. In memory only."""

from collections import OrderedDict
from collections.abc import Collection

import msgspec

from .registry import Registry
from .unmatched import explain_unmatched
from .views import EventView

MOST_NOTED = 5
"""The maximum number of waits and runs of one event that are named."""
_MOST_EVENTS = 1000
_MOST_FUNCTIONS = 5


class EventOutcome(msgspec.Struct, frozen=True):
    """``ended`` are sentences on waits and runs, at most ``MOST_NOTED`` of ``count``."""

    ended: list[str]
    count: int


class EventOutcomes:
    """The outcomes of events that were received since ``since``, in milliseconds; of the newest, not of all."""

    def __init__(self, since: int) -> None:
        self._since = since
        self._outcomes: OrderedDict[str, EventOutcome] = OrderedDict()
        self._forgotten = ""

    def note(self, outcomes: dict[str, EventOutcome]) -> None:
        self._outcomes.update(outcomes)
        while len(self._outcomes) > _MOST_EVENTS:
            self._forgotten, _ = self._outcomes.popitem(last=False)

    def explain(self, view: EventView, registry: Registry, awaited: Collection[str]) -> list[str]:
        """Sentences on the event. ``awaited`` are names of events that runs have waited for, or been cancelled by."""
        name = view.event.name
        outcome = self._outcomes.get(view.id)
        if outcome is None:
            said = self._explain_no_outcome(view, awaited)
        else:
            more = outcome.count - len(outcome.ended)
            said = [*outcome.ended, *([f"it ended {more} more waits or runs"] if more else [])]
        if name not in awaited and not registry.knows_event(name):
            said.append(explain_unmatched(name, registry, awaited))
        return said + _explain_conditions(view, registry)

    def _explain_no_outcome(self, view: EventView, awaited: Collection[str]) -> list[str]:
        if view.event.name not in awaited:
            return []
        if view.received_at.timestamp() * 1000 < self._since or view.id <= self._forgotten:
            return ["it may have ended a wait or cancelled a run; the engine remembers that only for recent events"]
        return ["it ended no wait and cancelled no run"]


def _explain_conditions(view: EventView, registry: Registry) -> list[str]:
    refused = registry.refused_by_condition(view.event.model_dump(), view.event.name)
    if not refused:
        return []
    named = ", ".join(refused[:_MOST_FUNCTIONS]) + (", …" if len(refused) > _MOST_FUNCTIONS else "")
    count = "1 function is" if len(refused) == 1 else f"{len(refused)} functions are"
    return [f"{count} triggered by its name, but not started, because the condition (if_exp) is false: {named}"]
