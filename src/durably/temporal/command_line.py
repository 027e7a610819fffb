"""What the commands share that ``durably temporal``, Flask's and Django's command lines have in common."""

import click

from durably.protocol.text import printable


class CouldNotRunError(click.ClickException):
    """The command could not find out what it was asked; scripts can tell this from an answer by the exit code 2."""

    exit_code = 2

    def format_message(self) -> str:
        return printable(self.message)


def with_target(command: click.Command, metavar: str | None) -> click.Command:
    """The command with a first argument ``target``, shown as ``metavar``; unchanged without one."""
    if metavar is not None:
        command.params.insert(0, click.Argument(["target"], metavar=metavar))
    return command
