"""What events did besides starting runs, and warnings about events that match nothing."""

import difflib
from collections import OrderedDict
from collections.abc import Collection, Iterable

import msgspec

from durably.engine.views import EventView
from durably.protocol.text import get_logger

from .registry import Registry

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


_logger = get_logger("durably.engine")

_MOST_EXPLAINED = 10
"""The maximum number of names of one request that are explained, because the search costs time."""
_MOST_NAMES = 1000
"""The maximum number of reported names to remember, and of names to search for the nearest."""
_LONGEST = 200


class UnmatchedEvents:
    def __init__(self) -> None:
        self._said: set[str] = set()

    def explain(self, names: Iterable[str], registry: Registry, awaited: Collection[str] = ()) -> dict[str, str]:
        """The reason why each event starts nothing, as the end of a sentence. Logged once for each name.

        ``awaited`` are names of events that runs have waited for.
        """
        found = {}
        for name in [*names][:_MOST_EXPLAINED]:
            found[name] = explain_unmatched(name, registry, awaited)
            if name not in self._said and len(self._said) < _MOST_NAMES:
                self._said.add(name)
                _logger.warning("the event %r was stored, but %s", name[:_LONGEST], found[name])
        return found


def explain_unmatched(name: str, registry: Registry, awaited: Collection[str] = ()) -> str:
    known = sorted({*registry.event_names, *awaited})[:_MOST_NAMES]
    if not registry.has_functions:
        return "no app has synced a function with this engine yet"
    nearest = difflib.get_close_matches(name[:_LONGEST], known, n=1)
    if not nearest:
        # Names that differ only in their prefix or in case are near too.
        same = [other for other in known if _core(other) == _core(name)]
        nearest = same[:1]
    text = "no function is triggered by it"
    if not nearest:
        return text
    use = "one is triggered by" if nearest[0] in registry.event_names else "a run has waited for"
    return f"{text}; the nearest event that {use} is {nearest[0]!r}"


def _core(name: str) -> str:
    return name.rpartition("/")[2].casefold()
