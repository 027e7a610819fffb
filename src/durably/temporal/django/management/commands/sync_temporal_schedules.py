"""``manage.py sync_temporal_schedules``."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from durably.errors import Error
from durably.temporal.django.conf import get_temporal
from durably.temporal.django.discovery import discover
from durably.temporal.schedule_command import run_sync_schedules


class Command(BaseCommand):  # type: ignore[misc]
    help = (
        "Makes the server's schedules those that workflows.py and activities.py of the installed apps declare with "
        "temporal.add_schedule(). What has not changed is left alone, and what is paused stays paused."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--app", metavar="NAME", help="Whose schedules these are (default: the task queue's name).")
        parser.add_argument("--prune", action="store_true", help="Delete those that are declared no longer.")
        parser.add_argument("--dry-run", action="store_true", help="Only say what would be done.")

    def handle(self, *args: Any, **options: Any) -> None:
        discover()  # Imports the modules that declare schedules.
        try:
            run_sync_schedules(
                get_temporal(),
                say=self.stdout.write,
                app=options["app"],
                prune=options["prune"],
                dry_run=options["dry_run"],
            )
        except Error as error:
            raise CommandError(str(error)) from error
