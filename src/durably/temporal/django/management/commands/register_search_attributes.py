"""``manage.py register_search_attributes``."""

from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.urls import get_resolver

from durably.temporal.connection import Temporal
from durably.temporal.django.commands import ConnectionCommand
from durably.temporal.register_command import run_register


class Command(ConnectionCommand):
    help = "Registers the search attributes that the project's gateways and temporal.add_search_attributes() declare."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--check", action="store_true", help="Register nothing; the exit code is 1 if something is missing."
        )

    def run(self, temporal: Temporal, **options: Any) -> None:
        if getattr(settings, "ROOT_URLCONF", None):
            get_resolver().url_patterns  # noqa: B018  Gateways declare their attributes when the URLs are imported.
        if not run_register(temporal, say=self.stdout.write, check=options["check"]):
            raise CommandError("search attributes are missing, or have another type")
