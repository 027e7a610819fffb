"""Telling whether a web server is loading the app, and when it has.

An app is imported by many: by servers, but also by shells, migrations, tests, and parents that load it once and
then fork. Only in the first may functions begin to run, and not before the app is complete. What is on the call
stack when the app is put together tells them apart.
"""

import sys
import threading
import time
from enum import Enum, auto
from types import FrameType

from durably.settings import Environment

_SERVERS = ("gunicorn.workers", "uvicorn", "daphne", "waitress")
_PRELOADERS = ("gunicorn.arbiter",)
"""Load the app in a parent, which forks those that serve."""
_COMMANDS = {
    ("flask.cli", "run_command"),
    ("django.core.management.commands.runserver", "inner_run"),
}
"""Functions of command lines that go on to serve."""
_LOOK_SECONDS = 0.01


class Loader(Enum):
    SERVER = auto()
    PRELOADER = auto()
    OTHER = auto()


class Loading:
    """Who loads the app, as seen from the call of ``serve`` in the thread that makes it."""

    def __init__(self) -> None:
        self.loader = Loader.OTHER
        self._thread = threading.get_ident()
        self._step: FrameType | None = None
        frame: FrameType | None = sys._getframe(1)
        called: FrameType | None = None
        while frame is not None:
            if (loader := _loader_of(frame)) is not Loader.OTHER:
                self.loader, self._step = loader, called
                return
            frame, called = frame.f_back, frame

    def wait_done(self) -> None:
        """Returns once what the server called in order to load the app has returned."""
        while self._step is not None and self._is_running(self._step):
            time.sleep(_LOOK_SECONDS)
        self._step = None

    def _is_running(self, step: FrameType) -> bool:
        frame = sys._current_frames().get(self._thread)
        while frame is not None and frame is not step:
            frame = frame.f_back
        return frame is not None


def _loader_of(frame: FrameType) -> Loader:
    module = frame.f_globals.get("__name__", "")
    if (module, frame.f_code.co_name) in _COMMANDS:
        return Loader.OTHER if Environment().is_reloader_parent else Loader.SERVER
    if _is_within(module, _PRELOADERS):
        return Loader.PRELOADER
    return Loader.SERVER if _is_within(module, _SERVERS) else Loader.OTHER


def _is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
