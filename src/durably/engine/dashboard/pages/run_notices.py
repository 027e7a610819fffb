"""Notices after actions.

The URL has the name of one, so that no other text can be shown.
"""

from durably.engine.dashboard.visit import Visit

_NOTICES = {
    "cancelled": "The run was cancelled.",
    "ended": "The run had already ended: nothing was changed.",
    "rerun": "This is the new run.",
    "sent": "The event was sent again.",
}


def notice_of(visit: Visit) -> str | None:
    """The notice that a page shows, if the action before left one."""
    return _NOTICES.get(visit.query.get("notice", ""))
