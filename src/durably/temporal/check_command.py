"""``check``, which looks for stuck workflows, for all command lines, and the metric that workers keep of them.

The exit code of the command is 0 if no workflow is stuck, 1 if one is, and 2 if that could not be found out.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import click
import msgspec
from temporalio.common import MetricMeter
from temporalio.service import RPCError

from durably.errors import Error
from durably.protocol.text import get_logger, printable, printable_json

from .command_line import CouldNotRunError, with_target
from .compat import workflow_parts
from .connect_failures import explain_refusal
from .connection import Temporal
from .declarations import WorkerDeclaration
from .errors import TemporalSettingsError
from .inspection import DEFAULT_LIMIT, Check, Inspector, Stuck
from .notices import DEFAULT_THRESHOLDS, Thresholds

PERIOD = timedelta(minutes=1)
"""How often a worker that serves metrics looks for stuck workflows."""

METRIC_LIMIT = 200
"""Workflows that a worker looks at in each period."""

METRIC = "durably_temporal_stuck_workflows"

_logger = get_logger("durably.temporal.worker")


@dataclass(frozen=True)
class CheckTarget:
    """What is looked at: running workflows of these types."""

    temporal: Temporal
    workflow_types: Sequence[str]


CHECK_OPTIONS = (
    click.Option(
        ["--limit"],
        default=DEFAULT_LIMIT,
        show_default=True,
        type=click.IntRange(1),
        metavar="N",
        help="How many running workflows are looked at, the latest first.",
    ),
    click.Option(
        ["--activity-attempts"],
        default=DEFAULT_THRESHOLDS.activity_attempts,
        show_default=True,
        type=click.IntRange(2),
        metavar="N",
        help="From which attempt on an activity is retried for too long.",
    ),
    click.Option(
        ["--activity-hours"],
        default=DEFAULT_THRESHOLDS.activity_duration.total_seconds() / 3600,
        show_default=True,
        type=click.FloatRange(0),
        metavar="HOURS",
        help="For how long an activity may be retried.",
    ),
    click.Option(["--json", "as_json"], is_flag=True, help="Print a JSON object a line; the last one is the summary."),
)
"""The options of ``check`` on all command lines, and the arguments of ``check_with_options``."""


def make_check_command(load: Callable[..., CheckTarget], *, target: str | None = None) -> click.Command:
    """``load`` gives what is looked at; it gets the argument ``target`` if there is one, shown as that text."""

    def run(*, limit: int, activity_attempts: int, activity_hours: float, as_json: bool, **given: str) -> None:
        try:
            is_well = check_with_options(load(**given), click.echo, limit, activity_attempts, activity_hours, as_json)
        except Error as error:
            raise CouldNotRunError(error.message) from error
        if not is_well:
            raise click.exceptions.Exit(1)

    of_target = "" if target is None else f" {target} exposes or runs"
    words = (
        f"List running workflows that do not go on, of the types that{of_target or ' the workers run'}.\n\n"
        "The exit code is 0 if no workflow is stuck, 1 if one is, and 2 if the server could not be asked."
    )
    return with_target(click.Command("check", callback=run, params=list(CHECK_OPTIONS), help=words), target)


def check_with_options(
    target: CheckTarget,
    say: Callable[[str], None],
    limit: int,
    activity_attempts: int,
    activity_hours: float,
    as_json: bool,
) -> bool:
    """``run_check`` with the values of ``CHECK_OPTIONS``."""
    thresholds = Thresholds(activity_attempts=activity_attempts, activity_duration=timedelta(hours=activity_hours))
    types = target.workflow_types
    return run_check(target.temporal, types, say=say, limit=limit, thresholds=thresholds, as_json=as_json)


def run_check(
    temporal: Temporal,
    workflow_types: Sequence[str],
    *,
    say: Callable[[str], None],
    limit: int = DEFAULT_LIMIT,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    as_json: bool = False,
) -> bool:
    """Say which running workflows of these types are stuck, and why. Returns whether none is.

    Raises ``TemporalSettingsError``, also for what the server refuses and if there are no types, and
    ``TemporalUnreachableError``.
    """
    if not workflow_types:
        raise TemporalSettingsError("there is nothing to check: no workflow is exposed or declared for a worker")

    async def run() -> Check:
        client = await temporal.connect()
        return await Inspector(temporal, thresholds).check(client, workflow_types, limit=limit)

    try:
        found = asyncio.run(run())
    except RPCError as error:
        raise TemporalSettingsError(explain_refusal(error.message, temporal.settings)) from error
    for line in _to_json(found) if as_json else _to_text(found):
        say(line)
    return not found.stuck


def declared_types(declarations: Iterable[WorkerDeclaration]) -> list[str]:
    """The types of the workflows that workers run, without dynamic ones."""
    found = [workflow_parts(workflow) for declaration in declarations for workflow in declaration.workflows]
    return sorted({parts.name for parts in found if parts is not None and parts.name is not None})


def _to_text(found: Check) -> list[str]:
    lines = [
        printable(f"{each.workflow_id} ({each.workflow_type}, run {each.run_id}): {notice.reason}: {notice.text}")
        for each in found.stuck
        for notice in each.notices
    ]
    lines.append(f"{len(found.stuck)} of {found.checked} running workflows are stuck")
    if found.checked < found.running:
        lines.append(f"{found.running - found.checked} running workflows were not checked: raise --limit")
    return lines


def _to_json(found: Check) -> list[str]:
    rows: list[dict[str, Any]] = [_row(each) for each in found.stuck]
    rows.append({"stuck": len(found.stuck), "checked": found.checked, "running": found.running})
    return [printable_json(msgspec.json.encode(row).decode()) for row in rows]


def _row(stuck: Stuck) -> dict[str, Any]:
    return {
        "workflow_id": stuck.workflow_id,
        "run_id": stuck.run_id,
        "workflow_type": stuck.workflow_type,
        "notices": [{"reason": str(notice.reason), "text": notice.text} for notice in stuck.notices],
    }


class StuckMetric:
    """The gauge ``durably_temporal_stuck_workflows``, by ``workflow_type`` and ``reason``."""

    def __init__(self, meter: MetricMeter) -> None:
        self._gauge = meter.create_gauge(METRIC, "Running workflows that do not go on.")
        self._set: set[tuple[str, str]] = set()

    def record(self, found: Check) -> None:
        """A workflow with several reasons counts for each of them."""
        counts = Counter(
            (each.workflow_type, str(reason)) for each in found.stuck for reason in {one.reason for one in each.notices}
        )
        for key in self._set | set(counts):
            self._gauge.set(counts[key], {"workflow_type": key[0], "reason": key[1]})
        self._set |= set(counts)


async def keep_metric(temporal: Temporal, workflow_types: Sequence[str], *, period: timedelta = PERIOD) -> None:
    """Look for stuck workflows of these types again and again, until cancelled."""
    inspector, metric = Inspector(temporal), StuckMetric(temporal.meter)
    while workflow_types:
        try:
            client = await temporal.client()
            metric.record(await inspector.check(client, workflow_types, limit=METRIC_LIMIT))
        except Exception as error:
            _logger.warning("Stuck workflows cannot be counted now: %s", error)
        await asyncio.sleep(period.total_seconds())
