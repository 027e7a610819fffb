"""``manage.py check_temporal_workflows``."""

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from durably.errors import Error
from durably.temporal.check_command import declared_types, run_check
from durably.temporal.django.conf import get_temporal
from durably.temporal.django.discovery import discover
from durably.temporal.inspection import DEFAULT_LIMIT


class Command(BaseCommand):  # type: ignore[misc]
    help = (
        "Lists running workflows of the installed apps that do not go on. The exit code is 1 if there are any, and 2 "
        "if the server could not be asked."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--limit", type=int, default=DEFAULT_LIMIT, metavar="N", help="How many are looked at.")
        parser.add_argument("--json", action="store_true", help="Print a JSON object a line.")

    def handle(self, *args: Any, **options: Any) -> None:
        types = declared_types(discover())
        try:
            is_well = run_check(
                get_temporal(), types, say=self.stdout.write, limit=options["limit"], as_json=options["json"]
            )
        except Error as error:
            raise CommandError(str(error), returncode=2) from error
        if not is_well:
            sys.exit(1)
