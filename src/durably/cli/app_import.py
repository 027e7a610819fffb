"""Importing the app that ``module:app`` names, and saying where the user's code went wrong if it did."""

import difflib
import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

USUAL_NAMES = ("app", "application", "main")
"""What apps are called in FastAPI's and Flask's documentation, in Django's, and in DigitalOcean's."""


class AppImportError(Exception):
    """The app cannot be imported. The text says why and, for an error in the user's code, where."""


def import_app(target: str, usual_names: Sequence[str] = USUAL_NAMES) -> object:
    """``target`` is ``module:name``, dots allowed in both; ``module`` alone looks for ``usual_names``."""
    module_name, _, name = target.partition(":")
    module = _import_module(module_name)
    if not name:
        name = next((each for each in usual_names if hasattr(module, each)), usual_names[0])
    found: object = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise AppImportError(f"{module_name} has no {part!r}{_suggest(part, found)}") from None
    return found


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # A module may also exit.
        if isinstance(error, ModuleNotFoundError) and error.name and (name + ".").startswith(error.name + "."):
            raise AppImportError(f"there is no module {error.name!r} in {Path.cwd()}{_suggest_module(name)}") from None
        if isinstance(error, ModuleNotFoundError | ValueError | TypeError) and not _user_frames(error):
            raise AppImportError(f"{name!r} is not the name of a module; give module:app, like shop.main:app") from None
        raise AppImportError(f"importing {name} failed: {_describe(error)}") from None


def _describe(error: BaseException) -> str:
    summary = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError):
        return f"{summary}\n  at {error.filename}, line {error.lineno}"
    frames = _user_frames(error)
    if not frames:
        return summary
    last = frames[-1]
    return f"{summary}\n  at {last.filename}, line {last.lineno}: {last.line}"


def _user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Frames of files below the import machinery and this module; the last within the working directory, if any."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__) and not frame.filename.startswith("<frozen ")
    ]
    here = str(Path.cwd())
    own = [frame for frame in frames if frame.filename.startswith(here) and "site-packages" not in frame.filename]
    return own or frames


def _suggest_module(name: str) -> str:
    """For ``main.py``, which names a file, and ``main.app``, which lacks the colon."""
    module, _, last = name.rpartition(".")
    if module not in sys.modules or last not in ("py", *USUAL_NAMES):
        return ""
    return f"; did you mean {module!r}?" if last == "py" else f"; did you mean '{module}:{last}'?"


def _suggest(name: str, found: object) -> str:
    public = [each for each in vars(found) if not each.startswith("_")] if hasattr(found, "__dict__") else []
    if close := difflib.get_close_matches(name, public, n=1):
        return f"; did you mean {close[0]!r}?"
    return "; name the app in it: module:name"
