"""``durably temporal check``: which running workflows are stuck, for cron, CI and alerts."""

from typing import TYPE_CHECKING

from .temporal_app import load_gateway_or_temporal
from .temporal_forwarding import could_not_run, forwarded

if TYPE_CHECKING:
    import click

    from durably.temporal.check_command import CheckTarget


def _make() -> "click.Command":
    from durably.temporal.check_command import make_check_command

    return make_check_command(_load, target="MODULE:GATEWAY")


def _load(target: str) -> "CheckTarget":
    from durably.temporal.check_command import CheckTarget, declared_types
    from durably.temporal.gateway import Gateway

    with could_not_run():
        loaded = load_gateway_or_temporal(target)
    if isinstance(loaded, Gateway):
        return CheckTarget(loaded.temporal, [each.definition.name for each in loaded.exposures.values()])
    return CheckTarget(loaded, declared_types(loaded.workers))


check = forwarded("check", _make, "List running workflows that do not go on.")
