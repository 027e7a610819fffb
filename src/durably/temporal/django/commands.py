"""What the management commands of Temporal have in common: ``--connection``."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from durably.errors import Error
from durably.temporal.connection import Temporal

from .conf import DEFAULT_CONNECTION, get_temporal


class ConnectionCommand(BaseCommand):  # type: ignore[misc]
    """A command for one of the project's connections, which ``run`` gets. Errors of ours are ``CommandError``."""

    error_code = 1

    def add_arguments(self, parser: CommandParser) -> None:
        add_connection_option(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            self.run(get_temporal(options["connection"]), **options)
        except Error as error:
            raise CommandError(str(error), returncode=self.error_code) from error

    def run(self, temporal: Temporal, **options: Any) -> None:
        raise NotImplementedError


def add_connection_option(parser: CommandParser) -> None:
    parser.add_argument(
        "--connection",
        default=DEFAULT_CONNECTION,
        metavar="NAME",
        help="Which of settings.TEMPORAL_CONNECTIONS (default: default).",
    )
