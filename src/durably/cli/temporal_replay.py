"""``durably temporal replay``."""

from typing import TYPE_CHECKING

from .failures import CliError
from .temporal_app import load_gateway_or_temporal
from .temporal_forwarding import forwarded

if TYPE_CHECKING:
    import click

    from durably.temporal.replay.command import ReplayTarget


def _make() -> "click.Command":
    from durably.temporal.replay.command import make_replay_command

    return make_replay_command(_load, target="MODULE:GATEWAY")


def _load(target: str) -> "ReplayTarget":
    from durably.temporal.command_line import CouldNotRunError
    from durably.temporal.gateway import Gateway
    from durably.temporal.replay.command import ReplayTarget
    from durably.temporal.replay.exposed import with_exposed

    try:
        loaded = load_gateway_or_temporal(target)
    except CliError as error:
        raise CouldNotRunError(error.message) from error
    if isinstance(loaded, Gateway):
        return ReplayTarget(loaded.temporal, with_exposed(loaded.temporal.workers, loaded.exposures.values()))
    return ReplayTarget(loaded, loaded.workers)


replay = forwarded("replay", _make, "Replay histories of workflows against the code.")
