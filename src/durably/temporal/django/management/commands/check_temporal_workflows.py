"""``manage.py check_temporal_workflows``."""

import sys
from typing import Any

from django.core.management.base import CommandParser

from durably.temporal.check_command import declared_types, run_check
from durably.temporal.connection import Temporal
from durably.temporal.django.commands import ConnectionCommand
from durably.temporal.django.discovery import discover
from durably.temporal.inspection import DEFAULT_LIMIT


class Command(ConnectionCommand):
    help = (
        "Lists running workflows of the installed apps that do not go on. The exit code is 1 if there are any, and 2 "
        "if the server could not be asked."
    )

    error_code = 2

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--limit", type=int, default=DEFAULT_LIMIT, metavar="N", help="How many are looked at.")
        parser.add_argument("--json", action="store_true", help="Print a JSON object a line.")

    def run(self, temporal: Temporal, **options: Any) -> None:
        types = declared_types(discover(options["connection"]))
        if not run_check(temporal, types, say=self.stdout.write, limit=options["limit"], as_json=options["json"]):
            sys.exit(1)
