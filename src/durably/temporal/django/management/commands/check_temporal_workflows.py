"""``manage.py check_temporal_workflows``."""

import sys
from typing import Any

from durably.temporal.client.connection import Temporal
from durably.temporal.commands.check import CHECK_OPTIONS, CheckTarget, run_check
from durably.temporal.declarations import workflow_types
from durably.temporal.django.commands import ConnectionCommand
from durably.temporal.django.discovery import discover


class Command(ConnectionCommand):
    help = (
        "Lists running workflows of the installed apps that are stuck. The exit code is 1 if there are any, and 2 if "
        "the server did not answer."
    )

    error_code = 2
    click_options = CHECK_OPTIONS

    def run(self, temporal: Temporal, **options: Any) -> None:
        target = CheckTarget(temporal, workflow_types(discover(options["connection"])))
        if not run_check(target, self.stdout.write, **self.click_values(options)):
            sys.exit(1)
