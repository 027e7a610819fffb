"""The management commands, which have the options of the click commands of other frameworks."""

import argparse
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import click
from django.core.management.base import BaseCommand, CommandError, CommandParser

from durably.errors import Error
from durably.temporal.client.connection import Temporal
from durably.temporal.django.conf import DEFAULT_CONNECTION, connections


class ConnectionCommand(BaseCommand):  # type: ignore[misc]
    """A command for one of the project's connections.

    ``run`` gets the connection. Durably's errors are ``CommandError``.
    """

    click_options: Sequence[click.Option] = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--connection",
            default=DEFAULT_CONNECTION,
            metavar="NAME",
            help="Which of settings.TEMPORAL_CONNECTIONS (default: default).",
        )
        for option in self.click_options:
            named: dict[str, Any] = {"dest": option.name, "help": option.help}
            if option.is_flag:
                parser.add_argument(*option.opts, action="store_true", **named)
                continue
            if option.multiple:
                named |= {"action": "append", "default": []}
            elif option.show_default:
                named |= {"default": option.default, "help": f"{option.help} (default: {option.default})"}
            parser.add_argument(*option.opts, type=functools.partial(_convert, option), metavar=option.metavar, **named)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            self.run(connections[options["connection"]], options)
        except Error as error:
            raise CommandError(str(error)) from error

    def run(self, temporal: Temporal, options: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def print_line(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


def _convert(option: click.Option, text: str) -> Any:
    try:
        return option.type.convert(text, option, None)
    except click.BadParameter as error:
        raise argparse.ArgumentTypeError(error.message) from error
