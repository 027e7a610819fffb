"""The rows of the results, in their order: each measures in a directory of its own, and writes its section."""

from pathlib import Path
from typing import Protocol

from . import (
    fan_out,
    ingest,
    latency,
    lists,
    log,
    outbox,
    run_page,
    sdk_report,
    sleeping,
    soak,
    step_cost,
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
    "sleeping": sleeping.report,
    "lists": lists.report,
    "run-page": run_page.report,
    "waiting": waiting.report,
    "ingest": ingest.report,
    "outbox": outbox.report,
    "virtual": virtual.report,
    "soak": soak.report,
    "cost": sdk_report.report_cost,
    "memory": sdk_report.report_memory,
    "temporal": temporal_web.report,
    "temporal-polls": temporal_polls.report,
    "temporal-engine": temporal_engine.report,
}
