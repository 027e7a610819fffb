"""Events without effect, and the nearest names that would match.

The module reads no store.
"""

import difflib
from collections.abc import Collection, Iterable

import msgspec

from durably.protocol.text import get_logger

_logger = get_logger("durably.engine")

_MOST_EXPLAINED = 10
"""The maximum number of names of one request that are explained, because the search costs time."""
_MOST_NAMES = 1000
"""The maximum number of reported names to remember, and of names to search for the nearest."""
_LONGEST = 200


class KnownNames(msgspec.Struct, frozen=True):
    """Names of events, and patterns of them.

    ``triggering`` trigger functions; runs have waited for ``awaited``.
    """

    triggering: Collection[str] = ()
    awaited: Collection[str] = ()
    has_functions: bool = False


class UnmatchedEvents:
    """Explains events, and logs each name once.

    ``are_stored``: the engine stores events that match no trigger and no wait.
    """

    def __init__(self, *, are_stored: bool = True) -> None:
        self._what = "stored" if are_stored else "received"
        self._said: set[str] = set()

    def explain(self, names: Iterable[str], known: KnownNames) -> dict[str, str]:
        """The reason why each event starts no run, as the end of a sentence.

        It is logged once for each name.
        """
        found = {}
        for name in [*names][:_MOST_EXPLAINED]:
            found[name] = explain_unmatched(name, known)
            if name not in self._said and len(self._said) < _MOST_NAMES:
                self._said.add(name)
                _logger.warning("the event %r was %s, but %s", name[:_LONGEST], self._what, found[name])
        return found


def explain_unmatched(name: str, known: KnownNames) -> str:
    names = sorted({*known.triggering, *known.awaited})[:_MOST_NAMES]
    if not known.has_functions:
        return "no app has synced a function with this engine yet"
    nearest = difflib.get_close_matches(name[:_LONGEST], names, n=1)
    if not nearest:
        # Names that differ only in their prefix or in case are similar too.
        same = [other for other in names if _core(other) == _core(name)]
        nearest = same[:1]
    text = "no function is triggered by it, and no run waits for it now"
    if not nearest:
        return text
    use = "one is triggered by" if nearest[0] in known.triggering else "a run has waited for"
    return f"{text}; the nearest event that {use} is {nearest[0]!r}"


def _core(name: str) -> str:
    return name.rpartition("/")[2].casefold()
