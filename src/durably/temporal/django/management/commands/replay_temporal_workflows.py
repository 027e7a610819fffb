"""``manage.py replay_temporal_workflows``."""

import click

from durably.temporal.django.click_command import ClickCommand
from durably.temporal.django.conf import get_temporal
from durably.temporal.django.discovery import discover
from durably.temporal.replay.command import ReplayTarget, make_replay_command


class Command(ClickCommand):
    help = "Replays histories of workflows against the code of the installed apps; see --help."

    def make(self, connection: str) -> click.Command:
        return make_replay_command(lambda: ReplayTarget(get_temporal(connection), discover(connection)))
