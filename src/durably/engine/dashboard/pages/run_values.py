"""Values in full: parts of JSON trees that the page of a run leaves out."""

import asyncio
from typing import Any

import msgspec

from durably.engine.dashboard.messages import DashboardResponse
from durably.engine.dashboard.rendering import json_tree
from durably.engine.dashboard.routing import Route
from durably.engine.dashboard.visit import PageError, Visit
from durably.engine.reports import RunReport

from .run import read_report

_MOST_SHOWN = 500_000


async def show_value(visit: Visit) -> DashboardResponse:
    """The value that ``of`` names, or its part at the JSON pointer ``at``.

    Children are shown from the number ``from`` on. ``raw`` downloads the whole value.
    """
    report = await read_report(visit)
    of = visit.query.get("of", "output")
    return await answer_value(visit, report.run.id, _encoded(report, of), of, run=report.run)


async def answer_value(visit: Visit, name: str, encoded: bytes, of: str, **values: Any) -> DashboardResponse:
    """The part of a value that the query names.

    ``name`` is that of a downloaded file. ``values`` are for the template: the ``run`` or the ``event``.
    """
    at, first = visit.query.get("at", ""), visit.query.get("from", "0")
    if "raw" in visit.query:
        return _download(name, encoded)
    start = int(first) if first.isascii() and first.isdigit() and len(first) < 10 else 0
    try:
        # In a thread: the event loop may be the app's own, and the value may have megabytes.
        tree = await asyncio.to_thread(_read_tree, encoded, at, start)
    except json_tree.PointerError:
        raise PageError(404, "There is no such value", f"The value has nothing at {at}.") from None
    return await visit.page("value.html", of=of, at=at, start=start, tree=tree, **values)


def _read_tree(encoded: bytes, at: str, start: int) -> json_tree.JsonNode:
    """Raises ``PointerError``."""
    value = json_tree.find(json_tree.decode(encoded), at)
    return json_tree.build_tree(value, pointer=at, start=start, most_text=_MOST_SHOWN)


def _encoded(report: RunReport, of: str) -> bytes:
    """The JSON of a value.

    ``output``, ``event:<id>``, ``input:<hashed step id>`` or ``output:<hashed step id>``.
    """
    kind, _, id = of.partition(":")
    found: Any = None
    if of == "output":
        found = report.run.output
    elif kind == "event":
        found = next((_encode(event.data) for event in report.events if event.id == id), None)
    elif kind in ("input", "output"):
        step = next((step for step in report.steps if step.hashed_id == id), None)
        found = step and (step.input if kind == "input" else step.output)
    if found is None:
        raise PageError(404, "There is no such value", "The run has no such event or step, or it has no value.")
    return bytes(found)


def _encode(data: object) -> bytes:
    return msgspec.json.encode(data)


def _download(name: str, encoded: bytes) -> DashboardResponse:
    headers = [
        ("content-type", "application/json"),
        ("content-disposition", f'attachment; filename="{name}.json"'),
        ("cache-control", "no-store"),
    ]
    return DashboardResponse(status_code=200, headers=headers, body=encoded)


ROUTES = (Route("GET", "/runs/{run_id}/value", show_value),)
