"""How commands fail: one or two lines on stderr and exit code 1, never a traceback of ours."""

from typing import Any

import click

from durably.protocol.errors import Error
from durably.protocol.text import printable_lines


class CliError(click.ClickException):
    """``message`` says what was wrong and what to do."""

    exit_code = 1

    def format_message(self) -> str:
        return printable_lines(self.message)


class Group(click.Group):
    """A group whose commands' errors, where they are Durably's own, are shown without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Error as error:
            if not error.message:  # What was wrong has been said.
                raise click.exceptions.Exit(1) from error
            raise CliError(error.message) from error
        except ModuleNotFoundError as error:
            if (error.name or "durably").partition(".")[0] == "durably":
                raise
            raise CliError(f'{error.name} is not installed; it comes with pip install "durably[engine]"') from error
