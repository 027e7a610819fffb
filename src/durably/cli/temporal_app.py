"""The app of a Temporal command: the ``Temporal`` or ``Gateway`` that ``module:name`` names, and commands for it."""

import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from .app_import import AppImportError, import_app
from .failures import CliError

if TYPE_CHECKING:
    from durably.temporal import Temporal
    from durably.temporal.gateway import Gateway

Loaded = TypeVar("Loaded")

USUAL_NAMES = ("temporal",)
"""The name of the connection in the documentation."""
_ALL_ARGUMENTS = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def require_temporal() -> None:
    """Raises ``CliError``, which names the extra, if ``temporalio`` is not installed."""
    try:
        import durably.temporal  # noqa: F401
    except ImportError as error:
        raise CliError(str(error)) from error


def forwarded(name: str, make: Callable[[], click.Command], short_help: str) -> click.Command:
    """A command that ``make`` makes when it is used: its options are declared in ``durably.temporal``.

    So the ``durably`` command starts without ``temporalio``. The command raises ``CliError`` if that is missing.
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


def load_temporal(target: str) -> "Temporal":
    """``target`` is ``module:name``, or ``module`` for the name ``temporal``. Raises ``CliError``."""
    from durably.temporal import Temporal

    found = _load(target, USUAL_NAMES)
    if not isinstance(found, Temporal):
        raise _unexpected(target, found, "a durably.temporal.Temporal")
    return found


def load_code(target: str) -> "Gateway | Temporal":
    """``target`` is ``module:name``, or ``module`` for the name ``gateway`` or ``temporal``. Raises ``CliError``."""
    from durably.temporal import Temporal
    from durably.temporal.gateway import Gateway

    found = _load(target, ("gateway", *USUAL_NAMES))
    if not isinstance(found, Gateway | Temporal):
        raise _unexpected(target, found, "a Gateway or a durably.temporal.Temporal")
    return found


def or_exit_code_2(load: Callable[[str], Loaded]) -> Callable[[str], Loaded]:
    """``load``, for a command whose exit code 1 is a negative result: a failure has the exit code 2."""
    from durably.temporal.commands import CouldNotRunError

    def checked(target: str) -> Loaded:
        try:
            return load(target)
        except CliError as error:
            raise CouldNotRunError(error.message) from error

    return checked


def _load(target: str, usual_names: tuple[str, ...]) -> object:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return import_app(target, usual_names)
    except AppImportError as error:
        raise CliError(str(error)) from None


def _unexpected(target: str, found: object, wanted: str) -> CliError:
    kind = type(found)
    return CliError(f"{target} is an object of type {kind.__module__}.{kind.__qualname__}, not {wanted}")


def log_plain_lines(level: str) -> None:
    """Write the log of workflows, activities and the SDK to stderr, unless the app has set up its own logging."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
