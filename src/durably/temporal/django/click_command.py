"""A management command that is a click command: the same options as on the command lines of Durably and Flask."""

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import click
from django.core.management.base import BaseCommand, CommandError, CommandParser

from durably.errors import Error

from .commands import add_connection_option
from .conf import get_temporal

_FLAGS = ("--traceback", "--no-color", "--force-color", "--skip-checks")
_WITH_VALUE = ("--settings", "--pythonpath", "-v", "--verbosity", "--connection")


class ClickCommand(BaseCommand):  # type: ignore[misc]
    """``manage.py name …`` gives all arguments but Django's own and ``--connection`` to the command of ``make()``.

    From code it is ``call_command(name, arguments=["--from", "histories"])``.
    """

    def make(self, connection: str) -> click.Command:
        """The command, for the connection of that name."""
        raise NotImplementedError

    def add_arguments(self, parser: CommandParser) -> None:
        add_connection_option(parser)
        parser.add_argument("arguments", nargs="*", default=[])

    def run_from_argv(self, argv: list[str]) -> None:
        own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for name in _FLAGS:
            own.add_argument(name, action="store_true")
        for name in _WITH_VALUE:
            own.add_argument(name)
        _, rest = own.parse_known_args(argv[2:])
        of_django = _without(argv[2:], rest)
        super().run_from_argv([*argv[:2], *of_django, "--", *rest])

    def handle(self, *args: Any, arguments: list[str], **options: Any) -> None:
        try:
            get_temporal(options["connection"])
        except Error as error:
            raise CommandError(str(error), returncode=2) from error
        self.make(options["connection"]).main(arguments, prog_name=f"manage.py {self._name}", standalone_mode=True)

    @property
    def _name(self) -> str:
        return type(self).__module__.rpartition(".")[2]


def add_click_options(parser: CommandParser, options: Iterable[click.Option]) -> None:
    """Options of a click command for a management command that has its own ``handle``."""
    for option in options:
        if option.is_flag:
            parser.add_argument(*option.opts, dest=option.name, action="store_true", help=option.help)
        else:
            words = f"{option.help} (default: {option.default})"
            kind = _argument_type(option)
            parser.add_argument(
                *option.opts, dest=option.name, type=kind, default=option.default, metavar=option.metavar, help=words
            )


def _argument_type(option: click.Option) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return option.type.convert(text, option, None)
        except click.BadParameter as error:
            raise argparse.ArgumentTypeError(error.message) from error

    return convert


def _without(arguments: list[str], rest: list[str]) -> list[str]:
    """``arguments`` without ``rest``, which has some of them in the same order."""
    left = iter(rest)
    following = next(left, None)
    kept = []
    for each in arguments:
        if each == following:
            following = next(left, None)
        else:
            kept.append(each)
    return kept
