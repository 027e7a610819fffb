"""``durably temporal deployment``."""

from typing import TYPE_CHECKING

from .temporal_app import load_temporal
from .temporal_forwarding import could_not_run, forwarded

if TYPE_CHECKING:
    import click

    from durably.temporal import Temporal


def _make() -> "click.Command":
    from durably.temporal.deployment_command import make_deployment_group

    return make_deployment_group(_load, target="MODULE:TEMPORAL")


def _load(target: str) -> "Temporal":
    with could_not_run():
        return load_temporal(target)


deployment = forwarded("deployment", _make, "Show and set the current version of workers.")
