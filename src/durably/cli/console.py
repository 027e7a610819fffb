"""Where a command that runs an engine says what it does: plain lines, coloured where a terminal reads them."""

import click

from .text import fit


class Console:
    def say(self, line: str) -> None:
        click.echo(fit(line))

    def note(self, line: str) -> None:
        """Something of the command itself, as opposed to what runs do."""
        click.secho(fit(line), dim=True)

    def warn(self, line: str) -> None:
        """Something that the user should look at; work goes on."""
        click.secho(fit(line), fg="yellow", err=True)
