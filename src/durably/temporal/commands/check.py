"""``check``: list running workflows that are stuck.

The exit code is 0 if no workflow is stuck, 1 if one is, and 2 if the server did not answer.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import click
import msgspec
from temporalio.service import RPCError

from durably.errors import Error
from durably.protocol.text import printable, printable_json
from durably.temporal.client.connect_failures import explain_refusal
from durably.temporal.client.connection import Temporal
from durably.temporal.declarations import workflow_types
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.gateway import Gateway
from durably.temporal.namespace.inspection import DEFAULT_LIMIT, Check, Inspector, StuckWorkflow
from durably.temporal.namespace.notices import DEFAULT_THRESHOLDS, Thresholds

from . import CouldNotRunError, json_option, with_target


@dataclass(frozen=True)
class CheckTarget:
    """The workflows to check: running ones of these types."""

    temporal: Temporal
    workflow_types: Sequence[str]


CHECK_OPTIONS = (
    click.Option(
        ["--limit"],
        default=DEFAULT_LIMIT,
        show_default=True,
        type=click.IntRange(1),
        metavar="N",
        help="Check at most N running workflows, the latest first.",
    ),
    click.Option(
        ["--activity-attempts"],
        default=DEFAULT_THRESHOLDS.activity_attempts,
        show_default=True,
        type=click.IntRange(2),
        metavar="N",
        help="An activity is stuck from this attempt on.",
    ),
    click.Option(
        ["--activity-hours"],
        default=DEFAULT_THRESHOLDS.activity_duration.total_seconds() / 3600,
        show_default=True,
        type=click.FloatRange(0),
        metavar="HOURS",
        help="An activity is stuck if it is retried for this long.",
    ),
    json_option("Print a JSON object a line; the last one is the summary."),
)
"""The options of ``check``, which are the keyword arguments of ``run_check``."""


def check_target(code: Gateway | Temporal) -> CheckTarget:
    """The workflows that a gateway exposes, or that a connection's workers run."""
    if isinstance(code, Gateway):
        return CheckTarget(code.temporal, [each.workflow_type for each in code.exposures.values()])
    return CheckTarget(code, workflow_types(code.workers))


def make_check_command(load: Callable[..., CheckTarget], *, target: str | None = None) -> click.Command:
    """The command ``check``.

    ``load`` returns the workflows to check. If ``target`` is given, the command takes an argument with this metavar,
    and ``load`` gets it as ``target``.
    """

    def run(**options: Any) -> None:
        given = {"target": options.pop("target")} if target is not None else {}
        try:
            is_well = run_check(load(**given), click.echo, **options)
        except Error as error:
            raise CouldNotRunError(error.message) from error
        if not is_well:
            raise click.exceptions.Exit(1)

    of_target = "" if target is None else f" {target} exposes or runs"
    words = (
        f"List running workflows that are stuck, of the types that{of_target or ' the workers run'}.\n\n"
        "The exit code is 0 if no workflow is stuck, 1 if one is, and 2 if the server did not answer."
    )
    return with_target(click.Command("check", callback=run, params=list(CHECK_OPTIONS), help=words), target)


def run_check(
    target: CheckTarget,
    print_line: Callable[[str], None],
    *,
    limit: int,
    activity_attempts: int,
    activity_hours: float,
    as_json: bool,
) -> bool:
    """Report stuck workflows, with reasons. Returns whether no workflow is stuck.

    Raises ``TemporalUnreachableError``, and ``TemporalSettingsError``, also for a refusal of the server and if there
    are no types.
    """
    if not target.workflow_types:
        raise TemporalSettingsError("there is nothing to check: no workflow is exposed or declared for a worker")
    thresholds = Thresholds(activity_attempts=activity_attempts, activity_duration=timedelta(hours=activity_hours))

    async def run() -> Check:
        client = await target.temporal.connect()
        return await Inspector(target.temporal, thresholds).check(client, target.workflow_types, limit=limit)

    try:
        found = asyncio.run(run())
    except RPCError as error:
        raise TemporalSettingsError(explain_refusal(error.message, target.temporal.settings)) from error
    for line in _to_json(found) if as_json else _to_text(found):
        print_line(line)
    return not found.stuck


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


def _row(stuck: StuckWorkflow) -> dict[str, Any]:
    return {
        "workflow_id": stuck.workflow_id,
        "run_id": stuck.run_id,
        "workflow_type": stuck.workflow_type,
        "notices": [{"reason": str(notice.reason), "text": notice.text} for notice in stuck.notices],
    }
