"""``durably temporal check``: which running workflows are stuck, for cron, CI and alerts."""

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from .console import Console
from .failures import CliError
from .temporal_app import load_gateway_or_temporal

if TYPE_CHECKING:
    from durably.temporal import Temporal


class CouldNotCheckError(CliError):
    """Nothing is known of workflows; alerts can tell this from stuck workflows."""

    exit_code = 2


@click.command()
@click.argument("target", metavar="MODULE:GATEWAY")
@click.option(
    "--limit",
    default=1000,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="How many running workflows are looked at, the latest first.",
)
@click.option(
    "--activity-attempts",
    default=10,
    show_default=True,
    type=click.IntRange(2),
    metavar="N",
    help="From which attempt on an activity is retried for too long.",
)
@click.option(
    "--activity-hours",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0),
    metavar="HOURS",
    help="For how long an activity may be retried.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line; the last one is the summary.")
def check(target: str, limit: int, activity_attempts: int, activity_hours: float, as_json: bool) -> None:
    """List running workflows that do not go on, of the types that MODULE:GATEWAY exposes.

    MODULE:TEMPORAL stands for the types that its workers run. The exit code is 0 if no workflow is stuck, 1 if one is,
    and 2 if the server could not be asked.
    """
    try:
        temporal, types = _types_of(target)
        from durably.temporal.check_command import run_check
        from durably.temporal.notices import Thresholds

        thresholds = Thresholds(activity_attempts=activity_attempts, activity_duration=timedelta(hours=activity_hours))
        is_well = run_check(temporal, types, say=Console().say, limit=limit, thresholds=thresholds, as_json=as_json)
    except Exception as error:
        raise _to_cli_error(error) from error
    if not is_well:
        raise click.exceptions.Exit(1)


def _to_cli_error(error: Exception) -> "CouldNotCheckError":
    """Raises what is a bug of Durably or of the app."""
    from durably.errors import Error

    if not isinstance(error, CliError | Error):
        raise error
    return CouldNotCheckError(error.message)


def _types_of(target: str) -> "tuple[Temporal, list[str]]":
    from durably.temporal.check_command import declared_types
    from durably.temporal.gateway import Gateway

    loaded = load_gateway_or_temporal(target)
    if isinstance(loaded, Gateway):
        return loaded.temporal, [each.definition.name for each in loaded.exposures.values()]
    return loaded, declared_types(loaded.workers)
