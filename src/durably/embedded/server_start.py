"""Start and end without a server's hooks.

They depend on the program of this process, its imports, and its exit.

Two private parts of Python are used here, because there is no public way: ``ModuleSpec._initializing`` and
``threading._register_atexit`` (checked with Python 3.11, 3.12 and 3.13). If a version lacks the first, a start in the
background does not wait for imports. If it lacks the second, the exit does not wait for calls in threads.
"""

import atexit
import sys
import threading
from collections.abc import Callable, Sequence
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
        # The parent of a reloading server may load the app too, and would continue with old code.
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
    """The file name of a script, or the package name for ``python -m package``."""
    if not arguments:
        return ""
    path = PurePath(arguments[0])
    return path.parent.name if path.name == "__main__.py" else path.name


_LOOK_SECONDS = 0.05
_SETTLE_SECONDS = 1.0
"""Seconds from the last import to the start. By then an app factory has run, and the server has forked its workers."""


class BackgroundStart:
    """Calls ``start`` in a separate thread when all imports are done.

    It does not call it if it is cancelled before.
    """

    def __init__(self, start: Callable[[], object]) -> None:
        self._start = start
        self._is_cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="durably-start", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Cancel the start, and wait until the thread has ended.

        The thread must not exist when the process forks.
        """
        self._is_cancelled.set()
        if self._thread is not threading.current_thread():
            self._thread.join(_SETTLE_SECONDS)

    def _run(self) -> None:
        while is_importing():
            if self._is_cancelled.wait(_LOOK_SECONDS):
                return
        if not self._is_cancelled.wait(_SETTLE_SECONDS):
            self._start()


def is_importing() -> bool:
    """Whether a module of this process is being imported."""
    return any(
        getattr(getattr(module, "__spec__", None), "_initializing", False) for module in list(sys.modules.values())
    )


def call_before_threads_end(callback: Callable[[], None]) -> None:
    """Register a function for the process's exit, before thread pools end.

    ``atexit`` functions run after that.
    """
    getattr(threading, "_register_atexit", atexit.register)(callback)


_PATCHERS = (("gevent", "gevent.monkey", "is_module_patched"), ("eventlet", "eventlet.patcher", "is_monkey_patched"))
"""Libraries that monkeypatch threads, with a check for each. A library that is not imported has patched nothing."""


def refuse_green_threads() -> None:
    """Refuse threads that gevent or eventlet has replaced.

    Raises ``RuntimeError`` if one of them has replaced this process's threads.
    """
    for name, module, question in _PATCHERS:
        patcher = sys.modules.get(module)
        if patcher is not None and any(getattr(patcher, question)(part) for part in ("thread", "threading")):
            raise RuntimeError(
                f"{name} has replaced this process's threads, and an engine in it would block them all: use workers "
                "with real threads (such as gunicorn -k gthread), or a separate engine (`durably start`)"
            )
