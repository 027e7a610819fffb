"""``manage.py replay_temporal_workflows``."""

import click

from durably.temporal.commands.replay import make_replay_command, replay_target
from durably.temporal.django.commands import ClickCommand
from durably.temporal.django.conf import get_temporal
from durably.temporal.django.discovery import discover


class Command(ClickCommand):
    help = "Replays histories of workflows against the code of the installed apps; see --help."

    def make(self, connection: str) -> click.Command:
        return make_replay_command(lambda: replay_target(get_temporal(connection), discover(connection)))
