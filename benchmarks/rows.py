"""The rows of the results, in their order: each measures in a directory of its own, and writes its section."""

from pathlib import Path
from typing import Protocol

from . import (
    agents,
    fan_out,
    followers,
    ingest,
    latency,
    lists,
    log,
    outbox,
    recovery,
    run_page,
    sdk_report,
    sleeping,
    soak,
    start,
    step_cost,
    streams,
    temporal_engine,
    temporal_polls,
    temporal_web,
    throughput,
    virtual,
    waiting,
)


class Row(Protocol):
    def __call__(self, directory: Path, *, is_quick: bool) -> str: ...


ROWS: dict[str, Row] = {
    "throughput": throughput.report,
    "latency": latency.report,
    "log": log.report,
    "step-cost": step_cost.report,
    "fan-out": fan_out.report,
    "agents": agents.report,
    "followers": followers.report,
    "start": start.report,
    "sleeping": sleeping.report,
    "recovery": recovery.report,
    "lists": lists.report,
    "run-page": run_page.report,
    "waiting": waiting.report,
    "ingest": ingest.report,
    "outbox": outbox.report,
    "streams": streams.report,
    "virtual": virtual.report,
    "soak": soak.report,
    "cost": sdk_report.report_cost,
    "memory": sdk_report.report_memory,
    "temporal": temporal_web.report,
    "temporal-polls": temporal_polls.report,
    "temporal-engine": temporal_engine.report,
}
