"""``manage.py check_temporal_workflows``."""

import sys
from typing import Any

from django.core.management.base import CommandParser

from durably.temporal.check_command import CHECK_OPTIONS, CheckTarget, check_with_options, declared_types
from durably.temporal.connection import Temporal
from durably.temporal.django.click_command import add_click_options
from durably.temporal.django.commands import ConnectionCommand
from durably.temporal.django.discovery import discover


class Command(ConnectionCommand):
    help = (
        "Lists running workflows of the installed apps that do not go on. The exit code is 1 if there are any, and 2 "
        "if the server could not be asked."
    )

    error_code = 2

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        add_click_options(parser, CHECK_OPTIONS)

    def run(self, temporal: Temporal, **options: Any) -> None:
        target = CheckTarget(temporal, declared_types(discover(options["connection"])))
        values = {str(option.name): options[str(option.name)] for option in CHECK_OPTIONS}
        if not check_with_options(target, self.stdout.write, **values):
            sys.exit(1)
