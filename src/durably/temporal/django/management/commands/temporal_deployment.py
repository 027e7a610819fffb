"""``manage.py temporal_deployment``."""

import click

from durably.temporal.commands.deployment import make_deployment_group
from durably.temporal.django.commands import ClickCommand
from durably.temporal.django.conf import get_temporal


class Command(ClickCommand):
    help = "Shows and sets the current version of workers; see --help."

    def make(self, connection: str) -> click.Command:
        return make_deployment_group(lambda: get_temporal(connection))
