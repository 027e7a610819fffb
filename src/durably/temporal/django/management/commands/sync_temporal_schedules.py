"""``manage.py sync_temporal_schedules``."""

from typing import Any

from django.core.management.base import CommandParser

from durably.temporal.connection import Temporal
from durably.temporal.django.commands import ConnectionCommand
from durably.temporal.django.discovery import discover
from durably.temporal.schedule_command import run_sync_schedules


class Command(ConnectionCommand):
    help = (
        "Makes the server's schedules those that workflows.py and activities.py of the installed apps declare with "
        "temporal.add_schedule(). What has not changed is left alone, and what is paused stays paused."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--app", metavar="NAME", help="Whose schedules these are (default: the task queue's name).")
        parser.add_argument("--prune", action="store_true", help="Delete those that are declared no longer.")
        parser.add_argument("--dry-run", action="store_true", help="Only say what would be done.")

    def run(self, temporal: Temporal, **options: Any) -> None:
        discover()  # Imports the modules that declare schedules.
        run_sync_schedules(
            temporal,
            say=self.stdout.write,
            app=options["app"],
            prune=options["prune"],
            dry_run=options["dry_run"],
        )
