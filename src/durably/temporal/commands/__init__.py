"""Commands of Temporal that Durably's, Flask's and Django's command lines share.

Each module declares a command with its options once: ``durably temporal …`` and ``flask temporal …`` are click commands
made of it; Django's management commands take their options from it.
"""

from typing import Any

import click

from durably.errors import Error
from durably.protocol.text import printable


class CouldNotRunError(click.ClickException):
    """The command has no result.

    Its exit code is 2. A negative result has the exit code 1.
    """

    exit_code = 2

    def format_message(self) -> str:
        return printable(self.message)


class Group(click.Group):
    """Shows errors of Durably without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Error as error:
            raise click.ClickException(str(error)) from error


def print_line(line: str) -> None:
    """Print a line, with control characters escaped."""
    click.echo(printable(line))


def with_target(command: click.Command, metavar: str | None) -> click.Command:
    """Insert a first argument ``target``, shown as ``metavar``, into the command.

    Without ``metavar``, the command is unchanged.
    """
    if metavar is not None:
        command.params.insert(0, click.Argument(["target"], metavar=metavar))
    return command


def json_option(help: str = "Print one JSON document.") -> click.Option:
    return click.Option(["--json", "as_json"], is_flag=True, help=help)
