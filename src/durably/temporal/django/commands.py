"""Base classes of the management commands.

They have ``--connection``, and the options of the click commands of other frameworks.

``ConnectionCommand`` takes the options of a click command as its own. ``ClickCommand`` gives its arguments to a click
command, which has subcommands or its own help.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from django.core.management.base import BaseCommand, CommandError, CommandParser

from durably.errors import Error
from durably.temporal.client.connection import Temporal

from .conf import DEFAULT_CONNECTION, get_temporal


class ConnectionCommand(BaseCommand):  # type: ignore[misc]
    """A command for one of the project's connections.

    ``run`` gets the connection. Durably's errors are ``CommandError``.
    """

    error_code = 1
    click_options: Sequence[click.Option] = ()

    def add_arguments(self, parser: CommandParser) -> None:
        _add_connection_option(parser)
        for option in self.click_options:
            _add_click_option(parser, option)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            self.run(get_temporal(options["connection"]), **options)
        except Error as error:
            raise CommandError(str(error), returncode=self.error_code) from error

    def run(self, temporal: Temporal, **options: Any) -> None:
        raise NotImplementedError

    def click_values(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The values of ``click_options``."""
        return {str(option.name): options[str(option.name)] for option in self.click_options}


def _add_connection_option(parser: CommandParser) -> None:
    parser.add_argument(
        "--connection",
        default=DEFAULT_CONNECTION,
        metavar="NAME",
        help="Which of settings.TEMPORAL_CONNECTIONS (default: default).",
    )


def _add_click_option(parser: CommandParser, option: click.Option) -> None:
    if option.is_flag:
        parser.add_argument(*option.opts, dest=option.name, action="store_true", help=option.help)
        return
    is_shown = option.show_default
    parser.add_argument(
        *option.opts,
        dest=option.name,
        type=_argument_type(option),
        action="append" if option.multiple else "store",
        default=[] if option.multiple else option.default if is_shown else None,
        metavar=option.metavar,
        help=f"{option.help} (default: {option.default})" if is_shown else option.help,
    )


def _argument_type(option: click.Option) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return option.type.convert(text, option, None)
        except click.BadParameter as error:
            raise argparse.ArgumentTypeError(error.message) from error

    return convert
