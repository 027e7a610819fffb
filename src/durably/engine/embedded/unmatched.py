"""Events that match nothing, usually misspelt: reported once for each name, with the nearest known name."""

import difflib
from collections.abc import Collection, Iterable

from durably.protocol.text import get_logger

from .registry import Registry

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
