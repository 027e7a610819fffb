"""Actions on the selected runs of a list."""

import re
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from durably.engine.core.errors import EngineError
from durably.engine.dashboard.messages import DashboardResponse
from durably.engine.dashboard.routing import Route
from durably.engine.dashboard.visit import PageError, Visit

_FIELD = re.compile(r"run-([0-9A-Za-z]{1,64})")
_LARGEST_COUNT = 1_000


class Notice(msgspec.Struct, frozen=True):
    """The outcome of an action, in a sentence."""

    text: str
    is_warning: bool


def read_notice(query: Mapping[str, str]) -> Notice | None:
    """The notice after an action.

    The URL has only its numbers, so that no other text can be shown.
    """
    action = query.get("did")
    if action not in ("cancelled", "rerun"):
        return None
    done, ended, refused = (_read_count(query.get(name, "")) for name in ("done", "ended", "refused"))
    was = "was" if done == 1 else "were"
    parts = [f"{_runs(done)} {was} {'cancelled' if action == 'cancelled' else 'started again'}."]
    if ended:
        parts.append(f"{_runs(ended)} had already ended.")
    if refused:
        parts.append(
            f"{_runs(refused)} could not be changed: the function is paused or no longer served, the run is gone, or "
            "you may not change it. Open one to see which."
        )
    return Notice(" ".join(parts), bool(refused))


def _read_count(text: str) -> int:
    return min(int(text), _LARGEST_COUNT) if text.isascii() and text.isdecimal() and len(text) < 6 else 0


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


async def cancel_selected(visit: Visit) -> DashboardResponse:
    return await _act(visit, "cancel_run", "cancelled", visit.engine.cancel_run)


async def rerun_selected(visit: Visit) -> DashboardResponse:
    async def rerun(run_id: str) -> bool:
        await visit.engine.rerun(run_id)
        return True

    return await _act(visit, "rerun", "rerun", rerun)


async def _act(visit: Visit, action: str, did: str, change: Callable[[str], Awaitable[bool]]) -> DashboardResponse:
    """``change`` returns false for a run that had already ended."""
    selected = [found[1] for name in visit.form if (found := _FIELD.fullmatch(name))]
    if not selected:
        raise PageError(400, "No run is selected", "Go back, select runs by the boxes of their rows, and try again.")
    done = ended = refused = 0
    for run_id in selected:
        if not await visit.may(action, run_id):
            refused += 1
            continue
        try:
            if await change(run_id):
                done += 1
            else:
                ended += 1
        except EngineError:
            refused += 1
    counts = {"done": done, "ended": ended or None, "refused": refused or None}
    return visit.redirect("/runs", **{**visit.query, "did": did, **counts})


ROUTES = (
    Route("POST", "/runs/cancel-selected", cancel_selected, action="cancel_run"),
    Route("POST", "/runs/rerun-selected", rerun_selected, action="rerun"),
)
