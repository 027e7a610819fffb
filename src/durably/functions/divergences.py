"""The reaction to replays that differ: warn, or fail the run."""

from collections import OrderedDict
from collections.abc import Sequence

from durably.execution import Divergence, ReplayDivergedError, StepIdUnstableError
from durably.protocol.errors import Error
from durably.protocol.text import printable
from durably.run_logger import Logger

_MAX_RUNS = 1_000
_MAX_NAMES = 10_000
_MAX_LISTED = 5
_MAX_GROWTHS = 5
"""Calls with a growing number of unreached finished steps after which a run fails."""

_GUIDE = "See docs/how-to/change-functions.md"


class Divergences:
    """The divergences of one function's runs, as this process has seen them.

    ``names`` are the readable ids of steps by their hashed ids: memos carry only the latter.
    """

    def __init__(self, function_id: str) -> None:
        self._function_id = function_id
        self._runs: OrderedDict[str, tuple[int, int]] = OrderedDict()  # most unreached steps so far, and growths
        self.names: dict[str, str] = {}

    def report(self, run_id: str, divergence: Divergence, logger: Logger, *, is_strict: bool) -> Error | None:
        """Log a divergence, once for each run and number of unreached steps. Returns the error that fails the run."""
        if len(self.names) > _MAX_NAMES:
            self.names.clear()
        text = self._describe(run_id, divergence)
        if is_strict:
            return ReplayDivergedError(f"{text} (strict_replay). {_GUIDE}")
        most, growths = self._runs.pop(run_id, (-1, 0))
        unreached = len(divergence.unreached)
        is_news = unreached > most
        if unreached > max(most, 0):
            growths += 1
        self._runs[run_id] = (max(most, unreached), growths)
        if len(self._runs) > _MAX_RUNS:
            self._runs.popitem(last=False)
        if growths >= _MAX_GROWTHS and divergence.found is not None:
            del self._runs[run_id]
            return StepIdUnstableError(
                f"{text}. This has happened in {growths} calls of the run, with more steps each time: the ids of its "
                "steps change from call to call (are they random, or made from the time?), so their handlers would run "
                f"again endlessly. {_GUIDE}"
            )
        if is_news:
            logger.warning("%s. Steps whose ids have changed run again. %s", printable(text), _GUIDE)
        return None

    def _describe(self, run_id: str, divergence: Divergence) -> str:
        where = f'function "{self._function_id}", run {run_id}'
        if not divergence.unreached:
            return f'{where}: the function reached step "{divergence.early}" earlier than when the run finished it'
        steps = self._list(divergence.unreached)
        did = f'found the new step "{divergence.found}"' if divergence.found is not None else "returned"
        return f"{where}: the function {did} without reaching steps that the run has finished: {steps}"

    def _list(self, ids: Sequence[str]) -> str:
        listed = [
            f'"{name}"'
            if (name := self.names.get(hashed_id))
            else f"one unknown to this process (SHA-1 of its id: {hashed_id[:12]}…)"
            for hashed_id in ids[:_MAX_LISTED]
        ]
        more = len(ids) - len(listed)
        return ", ".join(listed) + (f" and {more} more" if more else "")
