"""Commands whose options are declared in ``durably.temporal``, which is not there without ``temporalio``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from .failures import CliError
from .temporal_app import require_temporal

_ALL_ARGUMENTS = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def forwarded(name: str, make: Callable[[], click.Command], short_help: str) -> click.Command:
    """A command that is made by ``make`` when it is used, so that the ``durably`` command starts without it.

    The command raises ``CliError`` if ``temporalio`` is not installed.
    """

    @click.command(name, add_help_option=False, context_settings=_ALL_ARGUMENTS, short_help=short_help)
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    @click.pass_context
    def command(context: click.Context, arguments: tuple[str, ...]) -> None:
        require_temporal()
        made = make()
        with made.make_context(name, list(arguments), parent=context.parent) as own:
            made.invoke(own)

    return command


@contextmanager
def could_not_run() -> Iterator[None]:
    """Raises ``CouldNotRunError`` in place of ``CliError``, so that the exit code is 2."""
    from durably.temporal.command_line import CouldNotRunError

    try:
        yield
    except CliError as error:
        raise CouldNotRunError(error.message) from error
