"""``durably temporal replay``."""

from typing import TYPE_CHECKING

from .temporal_app import load_gateway_or_temporal
from .temporal_forwarding import could_not_run, forwarded

if TYPE_CHECKING:
    import click

    from durably.temporal.replay.command import ReplayTarget


def _make() -> "click.Command":
    from durably.temporal.replay.command import make_replay_command

    return make_replay_command(_load, target="MODULE:GATEWAY")


def _load(target: str) -> "ReplayTarget":
    from durably.temporal.gateway import Gateway
    from durably.temporal.replay.command import ReplayTarget
    from durably.temporal.replay.exposed import with_exposed

    with could_not_run():
        loaded = load_gateway_or_temporal(target)
    if isinstance(loaded, Gateway):
        return ReplayTarget(loaded.temporal, with_exposed(loaded.temporal.workers, loaded.exposures.values()))
    return ReplayTarget(loaded, loaded.workers)


replay = forwarded("replay", _make, "Replay histories of workflows against the code.")
