"""The kind of program of this process, by its name and arguments: a web server, or a framework's command line.

It is used only if there is no hook. Under a server that is not in the list the engine starts with the first request.
"""

import sys
from collections.abc import Sequence
from enum import Enum, auto
from pathlib import PurePath

from durably.settings import Environment

_SERVERS = ("daphne", "gunicorn", "hypercorn", "uvicorn", "waitress", "waitress-serve")
_RELOAD_OPTIONS = ("--reload", "--autoreload")
_DJANGO = ("manage.py", "django-admin", "django")


class Program(Enum):
    SERVER = auto()
    """A web server, in the process that serves."""
    COMMAND = auto()
    """A command of Flask or Django that does not serve, or the parent that restarts a server when code changes."""
    OTHER = auto()


def this_program() -> Program:
    return program_of(sys.argv, Environment())


def program_of(arguments: Sequence[str], environment: Environment) -> Program:
    name = _name_of(arguments)
    if name in _SERVERS:
        # The parent of a reloading server may load the app, too, and would go on with old code.
        return Program.OTHER if any(option in arguments for option in _RELOAD_OPTIONS) else Program.SERVER
    if name == "flask":
        return _served("run" in arguments, environment.is_reloaded or not _flask_reloads(arguments, environment))
    if name in _DJANGO:
        is_server = list(arguments[1:2]) == ["runserver"]
        return _served(is_server, environment.is_reloaded or "--noreload" in arguments)
    return Program.OTHER


def _served(is_server: bool, is_serving_process: bool) -> Program:
    return Program.SERVER if is_server and is_serving_process else Program.COMMAND


def _flask_reloads(arguments: Sequence[str], environment: Environment) -> bool:
    if "--no-reload" in arguments:
        return False
    return "--reload" in arguments or "--debug" in arguments or environment.is_flask_debug


def _name_of(arguments: Sequence[str]) -> str:
    """The file's name of a script; the package's name for ``python -m package``."""
    if not arguments:
        return ""
    path = PurePath(arguments[0])
    return path.parent.name if path.name == "__main__.py" else path.name
