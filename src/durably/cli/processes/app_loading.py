"""The import of the app that ``module:app`` names, and the app's kind.

Errors name the line of the user's code. This module imports no framework.
"""

import difflib
import importlib
import inspect
import sys
import traceback
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from types import ModuleType

USUAL_NAMES = ("app", "application", "main")
"""Names of apps in the documentation of FastAPI and Flask, of Django, and of DigitalOcean."""


class AppImportError(Exception):
    """The app cannot be imported.

    The text has the reason. For an error in the user's code, it also has the line.
    """


def import_app(target: str, usual_names: Sequence[str] = USUAL_NAMES) -> object:
    """Import the object that ``target`` names.

    ``target`` is ``module:name``, dots allowed in both. ``module`` alone stands for the first of ``usual_names`` that
    the module has. Raises ``AppImportError``.
    """
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
        raise AppImportError(f"importing {name} failed: {_describe_error(error)}") from None


def _describe_error(error: BaseException) -> str:
    summary = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError):
        return f"{summary}\n  at {error.filename}, line {error.lineno}"
    frames = _user_frames(error)
    if not frames:
        return summary
    last = frames[-1]
    return f"{summary}\n  at {last.filename}, line {last.lineno}: {last.line}"


def _user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Frames outside the import machinery and this module.

    If some are in the working directory, only those.
    """
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
    return f"; name the {'app' if name in USUAL_NAMES else 'object'} in it: module:name"


class AppKind(StrEnum):
    ASGI = "ASGI app"
    WSGI = "WSGI app"
    TORNADO = "Tornado application"
    DIGITAL_OCEAN = "DigitalOcean function"


ACCEPTED = (
    "an ASGI app (FastAPI, Django's ASGI), a WSGI app (Flask, Django's WSGI), a tornado.web.Application, "
    "or a DigitalOcean main(event, context)"
)


class NotAnAppError(Exception):
    """The object cannot be served."""


def detect_kind(app: object) -> AppKind:
    """Raises ``NotAnAppError``, whose text describes the object.

    ASGI apps take three arguments. WSGI apps and DigitalOcean functions take two; those of DigitalOcean's documentation
    are ``event`` and ``context``.
    """
    if _is_tornado(app):
        return AppKind.TORNADO
    if inspect.isclass(app) or not callable(app):
        raise NotAnAppError(_describe_object(app))
    try:
        names = [parameter.name for parameter in _positional(inspect.signature(app))]
    except (TypeError, ValueError):
        raise NotAnAppError(f"{_describe_object(app)} of unknown arguments") from None
    if len(names) == 3:
        return AppKind.ASGI
    if len(names) == 2 and not _is_async(app):
        return AppKind.DIGITAL_OCEAN if names[0] == "event" or names[1] == "context" else AppKind.WSGI
    raise NotAnAppError(f"{_describe_object(app)}({', '.join(names)})")


def _is_tornado(app: object) -> bool:
    web = sys.modules.get("tornado.web")
    return web is not None and isinstance(app, web.Application)


def _is_async(app: object) -> bool:
    return inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(getattr(app, "__call__", None))  # noqa: B004


def _positional(signature: inspect.Signature) -> list[inspect.Parameter]:
    """The parameters that a caller must give by position."""
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in signature.parameters.values() if p.kind in by_position and p.default is p.empty]


def _describe_object(app: object) -> str:
    if inspect.isclass(app):
        return f"the class {app.__name__}"
    if inspect.isroutine(app):
        return f"the function {getattr(app, '__name__', '')}"
    if inspect.ismodule(app):
        return f"the module {app.__name__}"
    return f"an object of type {type(app).__module__}.{type(app).__qualname__}"
