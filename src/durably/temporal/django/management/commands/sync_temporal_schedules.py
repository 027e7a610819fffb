"""``manage.py sync_temporal_schedules``."""

from collections.abc import Mapping
from typing import Any

from durably.temporal.client.connection import Temporal
from durably.temporal.commands import JSON_OPTION, run_sync_schedules
from durably.temporal.django.management import ConnectionCommand
from durably.temporal.django.worker import discover


class Command(ConnectionCommand):
    help = (
        "Creates and updates the schedules that workflows.py and activities.py of the installed apps declare with "
        "temporal.add_schedule(). A paused schedule stays paused."
    )

    click_options = (JSON_OPTION,)

    def run(self, temporal: Temporal, options: Mapping[str, Any]) -> None:
        discover()  # Imports the modules that declare schedules.
        run_sync_schedules(temporal, self.print_line, as_json=options["as_json"])
